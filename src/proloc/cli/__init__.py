"""The command ``proloc``: arguments in, exit code out; the work is done in the other rooms."""

from proloc.cli.main import build_parser, main

__all__ = ["build_parser", "main"]
