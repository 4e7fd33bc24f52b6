"""The commands that continue a text or show it: arguments in, exit code out."""

import argparse
import json
from pathlib import Path

from proloc.cli.parts import add_command, text_of, write_out


def add_generate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
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


def _generate(arguments: argparse.Namespace) -> int:
    from proloc.generation import continue_text

    print(
        continue_text(
            arguments.model, arguments.prompt, dial=arguments.dial, tokens=arguments.tokens, seed=arguments.seed
        )
    )
    return 0


def add_blocks(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
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
        help="fixed, random, sentence (default), paragraph, drift, recruitment, surprise, online, changepoint, tiling",
    )
    parser.add_argument("--model", default="builtin", help="whose tokens are cut (default: builtin)")
    parser.add_argument("--mean-length", type=float, help="tokens per block wanted, calibrated on this text")
    parser.add_argument("--html", type=Path, help="write a page that shows them too")
    parser.add_argument("--json", action="store_true", help="print JSON instead")


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
