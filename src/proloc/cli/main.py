"""The command ``proloc``: arguments in, exit code out; the work is done in the other rooms."""

import argparse
import os
import sys
from collections.abc import Sequence

from proloc import __version__
from proloc.cli.explain import add_explain, add_heads
from proloc.cli.models import add_check, add_models
from proloc.cli.study import add_localize, add_report, add_study
from proloc.cli.text import add_blocks, add_generate
from proloc.errors import ProlocError

USER_ERROR = 2
INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="proloc", description="A locality dial for Hugging Face decoder language models."
    )
    parser.add_argument("--version", action="version", version=f"proloc {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_study(commands)
    add_report(commands)
    add_check(commands)
    add_localize(commands)
    add_generate(commands)
    add_blocks(commands)
    add_explain(commands)
    add_heads(commands)
    add_models(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 = done, 1 = a run failed, 2 = the user can mend it, 130 = interrupted."""
    arguments = build_parser().parse_args(argv)
    # Our own bars and sentences say enough; the libraries read these on import, here and in worker processes.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        return int(arguments.run(arguments))
    except ProlocError as error:
        print(f"proloc: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("\nproloc: interrupted; the same command continues where it stopped.", file=sys.stderr)
        return INTERRUPTED
