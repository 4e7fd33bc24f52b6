"""What several commands of the command line share."""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from proloc.errors import ProlocError

# One word with a separator in it, or with a short suffix.
_LOOKS_LIKE_A_FILE = re.compile(r"\S*[/\\]\S*|\S+\.[A-Za-z]{1,4}")


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    summary: str,
    detail: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=detail, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, gone when done; what it gives is called with what is done and what is to do."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def write_out(path: Path, content: str) -> None:
    """Write what was asked for and say where."""
    from proloc.files import write_atomically

    try:
        write_atomically(path, content)
    except OSError as error:
        raise ProlocError(f"cannot write {path}: {error.strerror or error}.") from error
    print(f"Written: {path.resolve()}", file=sys.stderr)


def text_of(text_or_file: str) -> str:
    """The file's text where there is such a file, else the text itself, unless it looks like a file's name."""
    from proloc.text import read_file

    try:
        text_or_file.encode()
    except UnicodeEncodeError as error:
        raise ProlocError("the text is not valid UTF-8; pass it in a UTF-8 file.") from error
    try:
        is_file = Path(text_or_file).is_file()
    except (OSError, ValueError):  # a text too long, or with a NUL in it, is no name of a file
        is_file = False
    if is_file:
        return read_file(Path(text_or_file))
    if _LOOKS_LIKE_A_FILE.fullmatch(text_or_file):
        raise ProlocError(
            f"there is no file {text_or_file}; if you mean these characters as a text, put a space behind."
        )
    return text_or_file
