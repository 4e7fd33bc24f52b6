"""The commands that explain: arguments in, exit code out."""

import argparse
from pathlib import Path

from proloc.cli.parts import add_command, progress_bar, text_of, write_out


def add_explain(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(
        commands,
        "explain",
        "which blocks a prediction came from, checked by knocking them out",
        "Explain one prediction by the blocks before it: what attention says, and what happens when a block is\n"
        "knocked out. A model that was saved with its locality is taken as it was saved, another one unmodified.",
        _explain,
    )
    parser.add_argument("model", help="builtin, smollm2-135m, a folder or a Hub id")
    parser.add_argument("text", help="a text, or a file that holds one")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--target", help="what to explain: a span of the text (default: its last token)")
    asked.add_argument("--generate", type=int, default=0, metavar="N", help="explain N tokens that the model adds")
    parser.add_argument("--dial", type=float, help="0 = the unmodified model, 1 = the whole schedule")
    parser.add_argument(
        "--schedule", help="distributed, localist, linear, cubic, quintic, reversed or last-third (default: as saved)"
    )
    parser.add_argument(
        "--blocks", help="a kind as for `proloc blocks`, or re:PATTERN for blocks that open where it matches"
    )
    parser.add_argument("--layers", type=_layers, metavar="A-B", help="cut edges in these layers only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page that opens anywhere")


def _layers(given: str) -> list[int]:
    first, dash, last = given.partition("-")
    try:
        found = list(range(int(first), int(last if dash else first) + 1))
    except ValueError:
        found = []
    if not found:
        raise argparse.ArgumentTypeError(f"{given!r} names no layers; write 20-29, or 7")
    return found


def _explain(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from proloc.explaining.explain import explain
    from proloc.report.explanation import print_explanation
    from proloc.report.explanation_page import explanation_page

    with progress_bar("ablations") as progress:
        found = explain(
            arguments.model,
            text_of(arguments.text),
            target=arguments.target,
            generate=arguments.generate,
            dial=arguments.dial,
            schedule=arguments.schedule,
            blocks=arguments.blocks,
            layers=arguments.layers,
            progress=progress,
        )
    print_explanation(found, Console())
    if arguments.json is not None:
        write_out(arguments.json, found.model_dump_json(indent=1) + "\n")
    if arguments.html is not None:
        write_out(arguments.html, explanation_page(found))
    return 0


def add_heads(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(
        commands,
        "heads",
        "where a head looks, and what that is worth",
        "The strongest edges of one head between blocks, over a text, with examples and the loss without them.",
        _heads,
    )
    parser.add_argument("model", help="builtin, smollm2-135m, a folder or a Hub id")
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--head", type=int, required=True)
    parser.add_argument("--text", type=Path, help="a UTF-8 file (default: Python's own documentation)")
    parser.add_argument("--dial", type=float, help="0 = the unmodified model, 1 = the whole schedule")
    parser.add_argument("--windows", type=int, default=16, help="windows of 256 tokens, at most (default: 16)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")


def _heads(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from proloc.explaining.heads import view_head
    from proloc.report.heads import print_head
    from proloc.text import builtin_text, read_file

    text = builtin_text() if arguments.text is None else read_file(arguments.text)
    with progress_bar("windows") as progress:
        found = view_head(
            arguments.model,
            text,
            arguments.layer,
            arguments.head,
            dial=arguments.dial,
            max_windows=arguments.windows,
            progress=progress,
        )
    print_head(found, Console())
    if arguments.json is not None:
        write_out(arguments.json, found.model_dump_json(indent=1) + "\n")
    return 0
