"""Texts from files, and the one that is always there."""

import pydoc_data.topics
from pathlib import Path

from proloc.errors import ProlocError


def read_file(path: Path) -> str:
    """A UTF-8 text.

    Raises:
        ProlocError: no such file, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ProlocError(f"{path} is not UTF-8 text (byte {error.start}); convert it first.") from error
    except (OSError, ValueError) as error:
        raise ProlocError(f"cannot read the text {path}: {getattr(error, 'strerror', None) or error}.") from error


def builtin_text() -> str:
    """The topics of Python's own documentation: real technical English with known sections."""
    return "\n\n".join(pydoc_data.topics.topics.values())
