"""An explanation as data: what ``proloc explain`` writes as JSON and what the terminal view and the page read (ours).

This module does not import torch, so that a page can be made anywhere.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A frozen piece of an explanation; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class Target(Part):
    """The prediction explained: tokens ``start .. end - 1``.

    Attributes:
        log_prob: of the whole target with nothing knocked out, nats.
        token_log_probs: the same for each of its tokens.
        generated: whether the model wrote it itself (greedily), or it stood in the text.
    """

    start: int
    end: int
    text: str
    log_prob: float
    token_log_probs: list[float]
    generated: bool


class Source(Part):
    """A block before the one that asks, and what it gave to the prediction.

    Attributes:
        block: its number in the text.
        start, end: its tokens are ``start .. end - 1``.
        cut: log-probability of the target intact minus with the edges to this block cut, nats.
        removed: the same with its tokens taken out of the text.
        scores: attributions by method; each method has a scale of its own.
        enters: layers that can carry the block's content on its way to the target; no other layer can, provably.
    """

    block: int
    start: int
    end: int
    cut: float
    removed: float
    scores: dict[str, float]
    enters: list[int]


class Faithfulness(Part):
    """How well a method's attributions foretell the sampled ablations; None where a measure was not taken.

    Attributes:
        lds: Spearman's correlation; None also where all ablations had the same outcome.
        top_drop: log-probability lost without the method's strongest source, nats.
        comprehensiveness, sufficiency: ERASER's, in probability per token.
        hit: whether the strongest source is the true one, where that is known.
    """

    lds: float | None
    top_drop: float | None = None
    comprehensiveness: float | None = None
    sufficiency: float | None = None
    hit: bool | None = None


class PassageFaithfulness(Part):
    """How faithful every method is on one passage.

    Attributes:
        kind: where the passage is from.
        num_reaching: sources whose content some layer can carry to the target.
        log_prob: of the target, nats per token.
        true_source: the number of the source that holds the answer; None = not known.
        methods: by name.
        blocks_read: effective number of blocks that attention reads, by layer.
        passes: work of all ablations, in passes over the passage.
    """

    passage: str
    kind: str
    num_sources: int
    num_reaching: int
    log_prob: float
    true_source: int | None
    methods: dict[str, Faithfulness]
    blocks_read: list[float]
    passes: float


class HeadEdge(Part):
    """One block reading another through one head.

    Attributes:
        window: of the text.
        mass: attention to the tokens of the block read, sinks left out, mean over the tokens of the reading one.
        loss_change: of what the reading block predicts, nats per token, when this head loses this edge alone.
    """

    window: int
    query_block: int
    key_block: int
    mass: float
    loss_change: float
    query_text: str
    key_text: str


class HeadView(Part):
    """Where one head looks in a text.

    Attributes:
        loss: nats per token over all windows.
        loss_cut: the same without any edge of this head to an earlier block.
        blocks_read: effective number of blocks that attention reads, by layer, mean over heads and tokens.
        edges: strongest first.
    """

    schema_version: Literal[1] = 1
    model: str
    versions: dict[str, str]
    localities: list[float]
    dial: float
    blocks: str
    layer: int
    head: int
    windows: int
    context: int
    loss: float
    loss_cut: float
    blocks_read: list[float]
    edges: list[HeadEdge]


class Sampled(Part):
    """The ablations behind ``Faithfulness``: random ones, each source kept with probability one half.

    Attributes:
        num: measured on; the surrogate was fitted to ``num_fitted`` others.
        num_different: different ones among those measured on; few where there are few sources (at most 2 ** sources),
            and a rank correlation over few outcomes moves in large steps.
        how: whether edges were cut or tokens removed.
    """

    num: int
    num_different: int
    num_fitted: int
    how: Literal["cut", "removed"]


class Cost(Part):
    """What the ablations took, all of them together.

    Attributes:
        ablations: different ones that were computed.
        tokens: that went through the model for them.
        passes: ``tokens`` in units of the text read.
        seconds: of everything.
    """

    ablations: int
    tokens: int
    passes: float
    seconds: float


class Explanation(Part):
    """A prediction and the blocks it came from.

    Attributes:
        model, localities, dial, sinks: what ran, with lambda by layer.
        retain: what away keys keep of their weight in each layer; 0 = the layer is hard.
        layers: where edges were cut; None = in all.
        blocks: the partitioner's kind; ``causal`` False = it read the whole text, so the blocks only explain it.
        tokens: pieces of the text; joined, they are the text. ``block_ids`` and ``sinks`` go with them.
        asking: the number of the block whose tokens predict the target; it is never knocked out.
        blocks_read: effective number of blocks that attention reads, by layer (exp of its entropy over blocks).
        faithfulness: by method, those that know nothing of the model among them.
    """

    schema_version: Literal[1] = 1
    model: str
    versions: dict[str, str]
    localities: list[float]
    retain: list[float]
    dial: float
    num_sinks: int
    layers: list[int] | None
    blocks: str
    causal: bool
    tokens: list[str]
    block_ids: list[int]
    target: Target
    asking: int
    sources: list[Source]
    blocks_read: list[float]
    sampled: Sampled
    faithfulness: dict[str, Faithfulness]
    cost: Cost

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return self.model_dump(mode="json")
