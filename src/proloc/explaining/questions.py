"""Passages whose answer stands in one known block: facts, one in a block, and a question about one of them (ours).

The facts of a passage share their wording and differ in who and what, so that the answer can be had from its own block
only; plain sentences stand between them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from proloc.blocks import blocks_from_offsets

FACTS = (
    ("The key of the {} house is {}.", ("red", "green", "blue", "white", "black", "yellow", "grey", "brown")),
    ("The train to {} has the number {}.", ("Paris", "Rome", "Berlin", "Vienna", "Madrid", "Prague", "Oslo", "Bern")),
    ("The price of the {} is {} coins.", ("lamp", "chair", "clock", "table", "mirror", "carpet", "vase", "drum")),
    ("The room of Mr {} has the number {}.", ("Smith", "Brown", "Jones", "Taylor", "Wilson", "Clark", "Hall", "Young")),
)
BETWEEN = (
    "The old gardener likes his tea with milk and sugar.",
    "Nobody knows why the cat sleeps on the roof.",
    "It had rained all night and the streets were wet.",
    "The children were told to wait at the gate.",
    "A cold wind came down from the hills in the evening.",
    "The baker opens his shop before the sun is up.",
    "Letters were brought to the village twice a week.",
    "Some of the windows had been left open.",
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A text, where its blocks start, its target, and which block holds the answer.

    Attributes:
        starts: the first character of every block.
        target: the first character of the answer asked for; the text ends with it.
        true_block: counted from 0.
    """

    text: str
    starts: list[int]
    target: int
    true_block: int


def make_question(seed: int, num_facts: int = 6, num_between: int = 4) -> Question:
    """One question; the same seed gives the same.

    Args:
        seed: of the draw.
        num_facts: facts of one kind, at most 8.
        num_between: sentences between them, at most 8.
    """
    rng = np.random.default_rng(seed)
    wording, names = FACTS[rng.integers(len(FACTS))]
    who = rng.permutation(len(names))[:num_facts]
    numbers = 1000 + rng.permutation(9000)[:num_facts]
    facts = [wording.format(names[name], number) for name, number in zip(who, numbers, strict=True)]
    parts = [*facts, *(BETWEEN[place] for place in rng.permutation(len(BETWEEN))[:num_between])]
    order = rng.permutation(len(parts))
    asked = int(rng.integers(num_facts))
    texts = ["Read this with care.", *(parts[place] for place in order), facts[asked]]
    starts = np.cumsum([0, *(len(text) + 1 for text in texts[:-1])]).tolist()
    answer = str(numbers[asked])
    last = texts[-1]
    end = last.index(answer) + len(answer)
    text = " ".join([*texts[:-1], last[:end]])
    return Question(
        text=text,
        starts=starts,
        target=len(text) - len(answer),
        true_block=1 + int(np.flatnonzero(order == asked)[0]),
    )


def question_tokens(tokenizer: Any, question: Question) -> tuple[Any, Any, int]:
    """Token ids ``[text]``, blocks ``[text]`` and the first token of the target."""
    ids, given = blocks_from_offsets(tokenizer, question.text, question.starts)
    _, target = blocks_from_offsets(tokenizer, question.text, [question.target])
    return ids[0], given(ids)[0], target.starts[-1]
