"""What attention says: one pass over a passage, read out in every way that attention is commonly read."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from proloc.attention import Attention, Keys
from proloc.explaining.passage import Passage
from proloc.hf import find_state, recording
from proloc.hf.prefix import full_cache
from proloc.hf.projection import output_projections
from proloc.locality import HIDDEN, HOME


@dataclass(frozen=True)
class Readout:
    """Attention from a target to its sources, mean over the tokens that predict it, weights as the model used them.

    Attributes:
        attention: mass on each source, ``[layer, head, source]``.
        value_norms: ``sum over keys of || sum over heads of alpha * v W_o ||``, ``[layer, source]``.
        rollout: share of the target that flows to each source through all layers, ``[source]``.
        enters: bool ``[layer, source]``: whether this layer can carry the source's content on its way to the target;
            False is a proof that it cannot, True says nothing about how much.
        retain: what away keys keep of their weight, ``[layer]``; 0 = a hard layer.
        blocks_read: exp of the entropy of attention over blocks, sinks left out, mean over heads and over all tokens
            read, ``[layer]``: the effective number of blocks.
    """

    attention: Tensor
    value_norms: Tensor
    rollout: Tensor
    enters: Tensor
    retain: Tensor
    blocks_read: Tensor

    @property
    def reaches(self) -> Tensor:
        """Bool ``[source]``: whether any layer lets the source's content in."""
        return self.enters.any(dim=0)

    def scores(self) -> dict[str, Tensor]:
        """The attributions ``[source]`` that attention gives, by method (``docs/explain.md``)."""
        layers = len(self.attention)
        per_layer = self.attention.mean(dim=1)
        late = per_layer[-math.ceil(layers / 3) :].mean(dim=0)
        open_layers = (self.retain[:, None] * per_layer).sum(dim=0) / self.retain.sum().clamp_min(1e-12)
        return {
            "attention": per_layer.mean(dim=0),
            "attention-late": late,
            "attention-open": open_layers,
            "value-weighted": self.value_norms.mean(dim=0),
            "rollout": self.rollout,
        }


class _Reader:
    """Takes what is needed of each layer's weights while the layer runs."""

    def __init__(self, passage: Passage) -> None:
        self.passage = passage
        self.rows: dict[int, Tensor] = {}
        self.mean: dict[int, Tensor] = {}
        self.reads: dict[int, Tensor] = {}
        self.blocks_read: dict[int, Tensor] = {}
        self._blocks = torch.nn.functional.one_hot(passage.units[: passage.read]).double()
        self._blocks[: passage.num_sinks] = 0

    def visit(self, layer: int, attention: Attention, keys: Keys) -> None:
        assert attention.weights is not None  # the recorder asked for them
        weights = attention.weights[0].detach().double().cpu()
        relation = keys.at_layer(layer).relation()[0, 0].cpu()
        hard = float(attention.retain) == 0.0
        self.rows[layer] = weights[:, -self.passage.num_targets :]
        self.mean[layer] = weights.mean(dim=0).float()
        self.reads[layer] = relation >= HOME if hard else relation != HIDDEN
        mass = weights @ self._blocks
        share = mass / mass.sum(dim=-1, keepdim=True).clamp_min(1e-12)
        self.blocks_read[layer] = torch.special.entr(share).sum(dim=-1).exp()[:, self.passage.num_sinks :].mean()


@torch.no_grad()
def read_out(model: PreTrainedModel, passage: Passage) -> Readout:
    """One pass with the weights written out.

    Args:
        model: a localised model in evaluation mode.
        passage: what is explained.

    Source: value norms are those of Kobayashi et al. (2020, arXiv 2004.10102), rollout is that of Abnar and Zuidema
    (2020, arXiv 2005.00928), here over the mean of the heads; both summed over the tokens of a block. The flow is ours.
    """
    reader, cache = _Reader(passage), full_cache()
    ids, blocks = (part[None, : passage.read].to(model.device) for part in (passage.ids, passage.block_ids))
    with recording(model, visit=reader.visit), output_projections(model) as project:
        model(input_ids=ids, block_ids=blocks, past_key_values=cache, use_cache=True)
    layers = range(len(reader.rows))
    belongs = passage.membership
    norms = [
        _value_norms(reader.rows[layer], cache.layers[layer].values[0], functools.partial(project, layer))
        for layer in layers
    ]
    return Readout(
        attention=torch.stack([reader.rows[layer].mean(dim=1) @ belongs for layer in layers]),
        value_norms=torch.stack([norm @ belongs for norm in norms]),
        rollout=_rollout([reader.mean[layer] for layer in layers], passage.num_targets) @ belongs,
        enters=_flow([reader.reads[layer] for layer in layers], passage),
        retain=find_state(model).retain.clone().cpu(),
        blocks_read=torch.stack([reader.blocks_read[layer] for layer in layers]),
    )


def _value_norms(weights: Tensor, values: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
    """``[key]``, mean over queries, from weights ``[head, query, key]`` and values ``[kv_head, key, head_dim]``."""
    values = values.repeat_interleave(len(weights) // len(values), dim=0).transpose(0, 1)
    total = torch.zeros(values.shape[0], dtype=torch.float64)
    for query in range(weights.shape[1]):
        weighted = weights[:, query].T[..., None].to(values) * values
        total += project(weighted).double().norm(dim=-1).cpu()
    return total / weights.shape[1]


def _rollout(mean_weights: list[Tensor], num_targets: int) -> Tensor:
    """``[key]``: what arrives at the embeddings when every layer passes half on through attention and keeps half."""
    share = torch.zeros(mean_weights[0].shape[-1], dtype=mean_weights[0].dtype)
    share[-num_targets:] = 1 / num_targets
    for weights in reversed(mean_weights):
        share = 0.5 * share + 0.5 * (share @ weights)
    return share.double()


def _flow(reads: list[Tensor], passage: Passage) -> Tensor:
    """Bool ``[layer, source]``: follows back from the target which tokens each layer's output can depend on.

    Args:
        reads: bool ``[query, key]`` by layer, True where the layer gives the key any weight at all.
        passage: its sources.
    """
    needed = torch.zeros(passage.read, dtype=torch.bool)
    needed[-passage.num_targets :] = True
    units = passage.units[: passage.read]
    outside = units[:, None] != units[None, :]
    enters = []
    for layer in reversed(reads):
        edges = layer & needed[:, None]
        enters.append((edges & outside).any(dim=0).double() @ passage.membership > 0)
        needed = needed | edges.any(dim=0)
    return torch.stack(enters[::-1])
