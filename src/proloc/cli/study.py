"""The commands that tune models and report on them: arguments in, exit code out."""

import argparse
import math
import signal
import sys
from pathlib import Path

from proloc.cli.parts import add_command
from proloc.errors import ProlocError


def add_study(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
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


def add_report(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(
        commands,
        "report",
        "make the report of a study again",
        "Table, figures and page from a study's folder.",
        _report,
    )
    parser.add_argument("folder", type=Path, help="what `proloc study` wrote")


def add_localize(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
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


def _report(arguments: argparse.Namespace) -> int:
    _show_report(arguments.folder)
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


def _show_report(folder: Path) -> None:
    from rich.console import Console

    from proloc.report import build_report

    page = build_report(folder, Console())
    print(f"\nThe report: {page.resolve()}\nIts numbers: {(folder / 'summary.json').resolve()}")
