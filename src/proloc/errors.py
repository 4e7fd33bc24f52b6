"""The errors a user can cause and mend."""


class ProlocError(ValueError):
    """Something the user asked for cannot be done; the message says what was wrong and what would be right.

    The command line prints the message as one sentence and exits with code 2.
    """
