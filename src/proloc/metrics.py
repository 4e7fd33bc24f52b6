"""What is measured about attention: statistics of one layer, and their averages over many batches."""

from dataclasses import dataclass, fields

from torch import Tensor

from proloc.attention import Attention, Keys
from proloc.errors import ProlocError


@dataclass(frozen=True)
class AttentionStatistics:
    """Per query statistics of one layer, each ``[batch, head, query]``.

    Attributes:
        fidelity: attention mass on home and sink keys, as used (after the dial).
        fidelity_undialled: the same from the same scores before the dial: what the model learned.
        home_mass: mass on home keys without sinks, as used.
        sink_mass: mass on sinks, as used.
        uniform: share of the visible keys that are home or sink: the fidelity of uniform attention.
        entropy_bits: of the weights as used.
    """

    fidelity: Tensor
    fidelity_undialled: Tensor
    home_mass: Tensor
    sink_mass: Tensor
    uniform: Tensor
    entropy_bits: Tensor


def measure(attention: Attention, keys: Keys) -> AttentionStatistics:
    """All statistics of one layer; no T x T matrix is needed for them.

    Raises:
        ProlocError: the attention was computed without all statistics.
    """
    fidelity, undialled, home_mass = attention.fidelity, attention.fidelity_undialled, attention.home_mass
    sink_mass, entropy = attention.sink_mass, attention.entropy_bits
    if fidelity is None or undialled is None or home_mass is None or sink_mass is None or entropy is None:
        raise ProlocError('attention was computed without statistics; ask for wanted="all".')
    uniform = keys.uniform()[:, None].expand(undialled.shape)
    return AttentionStatistics(fidelity, undialled, home_mass, sink_mass, uniform, entropy)


class Averages:
    """Sums statistics over batches in float64 and averages them over queries.

    ``fidelity_without_sinks`` is a ratio of sums, home mass over all mass not on sinks, so that queries which look at
    sinks only do not weigh like the others. ``fidelity_lift`` is mean fidelity over mean uniform fidelity.
    """

    def __init__(self, num_layers: int) -> None:
        self._sums: list[dict[str, Tensor]] = [{} for _ in range(num_layers)]
        self._queries = 0

    def add(self, layers: list[AttentionStatistics], queries: Tensor) -> None:
        """Add one batch; ``queries`` is bool ``[batch, query]``, True for the queries that count."""
        self._queries += int(queries.sum())
        for sums, layer in zip(self._sums, layers, strict=True):
            for field in fields(layer):
                values = getattr(layer, field.name).cpu().double().movedim(1, 0)[:, queries.cpu()]
                sums[field.name] = sums.get(field.name, 0) + values.sum(dim=1)

    def per_head(self, name: str) -> list[list[float]]:
        """``[layer][head]`` of a statistic, of "fidelity_without_sinks" or of "fidelity_lift"."""
        return [[float(value) for value in self._mean(name, sums).unbind()] for sums in self._sums]

    def _mean(self, name: str, sums: dict[str, Tensor]) -> Tensor:
        if name == "fidelity_without_sinks":
            return sums["home_mass"] / (self._queries - sums["sink_mass"]).clamp_min(1e-9)
        if name == "fidelity_lift":
            return sums["fidelity"] / sums["uniform"]
        return sums[name] / self._queries
