"""What 64 ablations cost beside 64 forward passes of the same text, on one CPU thread.

    python benchmarks/explain.py --model smollm2-135m --tokens 512         # half an hour
    python benchmarks/explain.py --model builtin --tokens 256 --turns 5    # a minute

The text is Python's own documentation, cut into sentence blocks, its last 16 tokens are the target, and every source is
kept with probability one half. Two numbers for each way of knocking blocks out: the tokens that went through the model
over those of 64 passes, which is exact, and processor time over that of 64 passes (one pass is timed, the median of a
few, in turn with the ablations).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import proloc
from proloc.explaining.ablate import Ablator, draw_kept
from proloc.explaining.passage import Passage, count_units
from proloc.hf.models import load_model, load_tokenizer
from proloc.text import builtin_text

NUM_ABLATIONS, NUM_TARGETS, FIRST_TOKEN = 64, 16, 3000


def seconds(call: Callable[[], object]) -> float:
    """Processor time."""
    started = time.process_time()
    call()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/explain.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer, length = load_tokenizer(arguments.model), arguments.tokens
    ids = torch.tensor(tokenizer(builtin_text(), verbose=False)["input_ids"][FIRST_TOKEN : FIRST_TOKEN + length])
    blocks = proloc.SentenceBlocks(tokenizer)
    model = proloc.localize(load_model(arguments.model).eval(), proloc.Uniform(value=0.0), blocks)
    block_ids = blocks(ids[None])[0]
    passage = Passage(
        ids=ids,
        block_ids=block_ids,
        units=count_units(block_ids),
        start=length - NUM_TARGETS,
        end=length,
        num_sinks=1,
    )
    kept = draw_kept(NUM_ABLATIONS, len(passage.sources), 0)

    @torch.no_grad()
    def one_pass() -> None:
        model(input_ids=ids[None, :-1], block_ids=block_ids[None, :-1], use_cache=False, logits_to_keep=NUM_TARGETS)

    one_pass()
    record = {"model": arguments.model, "tokens": length, "sources": len(passage.sources), "ways": {}}
    for how in ("cut", "removed"):
        ratios = []
        for _ in range(arguments.turns):
            each = statistics.median(seconds(one_pass) for _ in range(3))
            ablator = []
            taken = seconds(lambda: ablator.append(Ablator(model, passage, how)) or ablator[0].log_probs(kept))  # noqa: B023
            ratios.append(taken / (NUM_ABLATIONS * each))
        record["ways"][how] = {
            "tokens_ratio": round(ablator[0].tokens_computed / (NUM_ABLATIONS * passage.read), 3),
            "time_ratio": round(statistics.median(ratios), 3),
            "different_ablations": ablator[0].num_computed,
        }
        print(how, record["ways"][how], flush=True)
    records = json.loads(arguments.out.read_text()) if arguments.out.is_file() else []
    records = [each for each in records if (each["model"], each["tokens"]) != (arguments.model, length)]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps([*records, record], indent=1) + "\n")


if __name__ == "__main__":
    main()
