"""What a boundary costs an untuned model, by partitioner: under a hard last third of the layers, at one mean length.

    python benchmarks/boundary_cost.py builtin BOOK.txt
    python benchmarks/boundary_cost.py smollm2-135m BOOK.txt --windows 24

Every partitioner is fitted as `examples/partitioners-smollm2.toml` says, on the windows where it is measured. Equal
means do not make them equal: where lengths vary, more tokens lie in long blocks and see more text. So each is also
compared with random boundaries that have its own distribution of lengths and of leads (mean over a few draws), and
with fixed ones led by as many tokens. Rows with a halo have shorter blocks and read the block before their own too: at
a third of the length they see as many tokens. Rows that the record already holds are not run again.
Ratios are of perplexities, with paired 95% t-intervals over windows; they are not corrected for their number.
"""

import argparse
import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import proloc
from proloc.blocks import FixedBlocks, Partitioner, SentenceBlocks, calibrate, matched_fixed, matched_random
from proloc.files import write_atomically
from proloc.hf import set_dial
from proloc.hf.models import load_model, load_tokenizer
from proloc.locality import block_starts, home_starts
from proloc.schedule import Step
from proloc.study.config import BlocksSection, load_config
from proloc.study.partitioners import Material, fit
from proloc.study.statistics import Estimate, log_ratio_interval
from proloc.text import read_file

STUDY = Path(__file__).parents[1] / "examples" / "partitioners-smollm2.toml"
LIMITS = {"min_length": 16, "max_length": 192}
LED = {
    "recruitment with hindsight": BlocksSection(kind="recruitment", hindsight=True, **LIMITS),
    "drift with hindsight": BlocksSection(kind="drift", hindsight=True, **LIMITS),
    "online": BlocksSection(kind="online"),
}
KINDS = {"sentence": "sentence", "semantic": "recruitment", "drift": "drift", "surprise": "surprise"}
KINDS |= {name: name for name in LED}
CONTEXT, HELD_OUT, DRAWS = 256, 0.1, 2
SINCE = (0, 1, 2, 4, 8, 16, 32, 64, 256)


class Cost:
    """The untuned model on some windows, dialled with any blocks.

    Args:
        name: of the model.
        windows: token ids ``[window, token]``.
        blocks: any; block ids are always given.
    """

    def __init__(self, name: str, windows: Tensor, blocks: Partitioner) -> None:
        self._model = load_model(name).eval()
        layers = self._model.config.get_text_config(decoder=True).num_hidden_layers
        self._setting = {
            "schedule": Step(layers=-(-layers // 3)),
            "blocks": blocks,
            "sinks": 1 if name == "builtin" else 4,
        }
        self._windows = windows
        self.undialled = self.of(blocks(windows), dial=0.0)

    @torch.no_grad()
    def of(self, block_ids: Tensor, *, halo: int = 0, dial: float = 1.0) -> np.ndarray:
        """Nats of every predicted token, ``[window, token - 1]``."""
        model = proloc.localize(self._model, **self._setting, halo=halo)
        set_dial(model, dial)
        found = []
        for ids, blocks in zip(self._windows.split(4), block_ids.split(4), strict=True):
            logits = model(input_ids=ids, block_ids=blocks, use_cache=False).logits[:, :-1]
            nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2).float(), ids[:, 1:], reduction="none")
            found.append(nats.double())
        return torch.cat(found).numpy()


def measure(cost: Cost, windows: Tensor, partitioner: Partitioner, fixed: np.ndarray) -> dict[str, object]:
    """One partitioner beside fixed blocks and beside random ones of its own lengths."""
    blocks = partitioner(windows)
    nats = cost.of(blocks)
    draws = [matched_random(partitioner, windows.numpy(), seed=seed) for seed in range(DRAWS)]
    drawn = [draw(windows) for draw in draws]
    random = np.mean([cost.of(block_ids) for block_ids in drawn], axis=0)
    row = {
        **about(cost, blocks, nats),
        "over_fixed": ratio(nats, fixed),
        "over_random_of_its_lengths": ratio(nats, random),
        "that_random_over_undialled": ratio(random, cost.undialled),
        "own_tokens_seen_of_that_random": round(float(np.mean([own_tokens(block_ids) for block_ids in drawn])), 1),
    }
    like = matched_fixed(partitioner, windows.numpy())
    if like.lead:
        row |= {"lead": like.lead, "over_fixed_of_its_lead": ratio(nats, cost.of(like(windows)))}
    return row


def with_halo(cost: Cost, windows: Tensor, partitioner: Partitioner, fixed: np.ndarray) -> dict[str, object]:
    """Blocks that read the one before them, beside fixed ones that do not."""
    blocks = partitioner(windows)
    nats = cost.of(blocks, halo=1)
    return {**about(cost, blocks, nats, halo=1), "over_fixed": ratio(nats, fixed)}


def about(cost: Cost, blocks: Tensor, nats: np.ndarray, halo: int = 0) -> dict[str, object]:
    """Cost, block lengths, and the nats that a token loses by the tokens read since the boundary."""
    starts, place = block_starts(blocks).numpy(), np.arange(blocks.shape[1])
    since = place - starts
    lost = nats - cost.undialled
    later = (home_starts(blocks, halo).numpy() > 0)[:, :-1]  # else nothing is hidden
    bins = {}
    for low, high in itertools.pairwise(SINCE):
        chosen = later & (since[:, :-1] >= low) & (since[:, :-1] < high)
        if chosen.any():
            bins[f"{low}-{high - 1}"] = round(float(lost[chosen].mean()), 4)
    return {
        "over_undialled": ratio(nats, cost.undialled),
        "tokens_per_opened_block": round(since.size / int((since == 0).sum()), 1),
        "own_tokens_seen": round(own_tokens(blocks, halo), 1),
        "nats_lost_by_tokens_since_boundary": bins,
    }


def own_tokens(blocks: Tensor, halo: int = 0) -> float:
    """How many home tokens a token sees on average, itself included."""
    return float((np.arange(blocks.shape[1]) - home_starts(blocks, halo).numpy()).mean()) + 1


def ratio(ours: np.ndarray, theirs: np.ndarray) -> list[float | None]:
    """Perplexity ratio and its interval over windows."""
    found: Estimate = log_ratio_interval((ours - theirs).mean(axis=1).tolist())
    return [None if value is None else round(value, 4) for value in (found.mean, found.low, found.high)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/boundary_cost.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(STUDY)
    config = config.model_copy(update={"partitioners": {**config.partitioners, **LED}})
    tokenizer = load_tokenizer(arguments.model)
    ids = np.asarray(tokenizer(read_file(arguments.text), add_special_tokens=False, verbose=False)["input_ids"])
    cut = int(ids.size * (1 - HELD_OUT))
    held_out = ids[cut : cut + (ids.size - cut) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
    chosen = np.linspace(0, len(held_out) - 1, min(arguments.windows, len(held_out))).round().astype(int)
    material = Material(arguments.model, tokenizer, ids[:cut], held_out[chosen])
    partitioners = fit(config, material)
    windows = torch.from_numpy(held_out[chosen])
    cost = Cost(arguments.model, windows, partitioners["fixed"])
    blocks = partitioners["fixed"](windows)
    fixed = cost.of(blocks)
    subject, what = f"{arguments.model} on {arguments.text.name}", {"windows": len(chosen), "context": CONTEXT}
    known = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    before = known.get(subject, {})
    rows = before["kinds"] if what.items() <= before.items() else {}

    def keep(name: str, find: Callable[[], dict[str, object]]) -> None:
        if name in rows:
            return
        rows[name] = find()
        print(name, rows[name], flush=True)
        known[subject] = {**what, "kinds": rows}
        write_atomically(arguments.out, json.dumps(known, indent=1) + "\n")

    keep("fixed", lambda: about(cost, blocks, fixed))
    mean = config.blocks.mean_length
    haloed = {f"fixed {round(mean / part)}, halo 1": FixedBlocks(round(mean / part)) for part in (3, 2)}
    sentences = calibrate(SentenceBlocks(tokenizer, max_length=round(2 * mean)), material.lengths, mean / 2)
    for name, partitioner in {**haloed, f"sentence {round(mean / 2)}, halo 1": sentences}.items():
        keep(name, partial(with_halo, cost, windows, partitioner, fixed))
    for role, name in KINDS.items():
        keep(name, partial(measure, cost, windows, partitioners[role], fixed))


if __name__ == "__main__":
    main()
