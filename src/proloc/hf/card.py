"""The model card: ``README.md`` beside a saved localised model says what it is, how to load it, what was measured."""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import ModelCardData
from transformers import PreTrainedModel

from proloc.errors import ProlocError
from proloc.files import write_atomically
from proloc.hf.persistence import CARD_FILE, Figure, Setting
from proloc.hf.state import ATTRIBUTE, find_state

MARKER = "<!-- proloc writes this file again at every save; without this line it is left alone -->"
# transformers' own card; push_to_hub writes it over ours right before it uploads.
TRANSFORMERS_CARD = (
    "transformers model that has been pushed on the Hub. This model card has been automatically generated."
)
BLOCK_LENGTH = "mean block length, tokens"

_SAMPLED = 1024
_MANY = 8


class Measured(Protocol):
    """What ``proloc.evaluate`` returns."""

    @property
    def tokens(self) -> int: ...
    @property
    def perplexity(self) -> float: ...
    @property
    def statistics(self) -> Mapping[str, list[list[float]]]: ...
    @property
    def fidelity_uniform(self) -> float: ...
    @property
    def mean_block_length(self) -> float: ...


def add_figures(
    model: PreTrainedModel,
    measured: Measured | Mapping[str, float],
    *,
    text: str,
    how: str = "",
    dial: float | None = None,
) -> None:
    """Attach measured figures to a localised model; they are saved with it and stand on its model card.

    Figures of the same quantity, text, dial and way of measuring are replaced. The card marks the figures of weights
    that have changed since; localising the model again removes all of them.

    Args:
        model: a localised model.
        measured: what ``proloc.evaluate`` returned, or numbers of your own, ``{"accuracy": 0.71}``.
        text: what was read, for example "WikiText-2, test split".
        how: anything else one must know to measure it again.
        dial: where the dial stood; None = where it stands now.

    Raises:
        ProlocError: not localised, a figure that is no finite number, no text, or a dial outside [0, 1].
    """
    state, owner = find_state(model), _owner(model)
    position = state.dial if dial is None else dial
    if not isinstance(position, (int, float)) or not 0.0 <= position <= 1.0:
        raise ProlocError(f"the dial is {position!r}; it must be a number in [0, 1].")
    if not isinstance(text, str) or not text.strip():
        raise ProlocError(f"the text is {text!r}; name what was read, for example 'WikiText-2, test split'.")
    numbers, notes = (measured, "") if isinstance(measured, Mapping) else _numbers(measured)
    weights = fingerprint(owner)
    new = [
        Figure(
            what=str(what),
            value=_finite(what, value),
            dial=float(position),
            text=text,
            how="; ".join(note for note in (notes, how) if note),
            weights=weights,
        )
        for what, value in numbers.items()
    ]
    replaced = {_measurement(figure) for figure in new}
    kept = [old for old in figures(model) if _measurement(old) not in replaced]
    owner.config.proloc = {**owner.config.proloc, "figures": [each.model_dump() for each in (*kept, *new)]}


def figures(model: PreTrainedModel) -> list[Figure]:
    """The figures attached to a localised model.

    Raises:
        ProlocError: not localised.
    """
    find_state(model)
    return [Figure(**each) for each in _owner(model).config.proloc["figures"]]


def fingerprint(model: PreTrainedModel) -> str:
    """A short hash that changes when the weights do: of up to two thousand evenly spaced values of each."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        sampled = values[:: max(1, values.numel() // _SAMPLED)]
        digest.update(name.encode())
        digest.update(f"{parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(b"" if sampled.is_meta else sampled.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_card(model: PreTrainedModel, folder: str | Path) -> None:
    """Write the card of a localised model into a folder; a ``README.md`` that somebody else wrote stays as it is."""
    file = Path(folder) / CARD_FILE
    if file.exists():
        present = file.read_bytes().decode("utf-8", errors="replace")
        if MARKER not in present and TRANSFORMERS_CARD not in present:
            return
    setting = Setting(**model.config.proloc)
    weights = fingerprint(model) if setting.figures else ""
    card = render_card(
        setting, localities=find_state(model).localities, architecture=type(model).__name__, weights=weights
    )
    write_atomically(file, card)


def render_card(setting: Setting, *, localities: Iterable[float], architecture: str, weights: str) -> str:
    """A localised model's card in Markdown, with the Hub's YAML before it.

    Args:
        setting: as it is saved.
        localities: of every layer.
        architecture: name of the model's class.
        weights: fingerprint of the weights that are saved.
    """
    metadata = ModelCardData(
        base_model=setting.base_model,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["proloc", "locality", "interpretability"],
    ).to_yaml()
    base = escape(setting.base_model) if setting.base_model else "a model that did not come from the Hub"
    layers = [
        (str(layer), f"{locality:.4g}", f"{setting.dial * locality:.4g}") for layer, locality in enumerate(localities)
    ]
    parts = [
        f"---\n{metadata}\n---\n{MARKER}",
        f"# {escape(architecture)} with a locality dial",
        _WHAT,
        "## Loading",
        _LOADING,
        "## How it was made",
        _list(
            {
                "Base model": base,
                "Schedule": escape(_words(setting.schedule)),
                "Dial as saved": f"{setting.dial:.4g}",
                "Blocks": escape(_words({"kind": setting.blocks.kind, **setting.blocks.settings})),
                **_block_lengths(setting.figures),
                "Sinks": f"{setting.sinks} (that many first tokens of a sequence can always be read)",
                "Halo": f"{setting.halo} (that many blocks before a token's own are read like it)",
                "Saved with": escape(", ".join(f"{name} {number}" for name, number in setting.made_with.items())),
            }
        ),
        _table(("layer", "locality λ", "dial · λ as saved"), layers),
        "## Measured",
        _measured(setting.figures, weights),
        "## Limits",
        _LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """One line of plain text that Markdown shows as it is, also in a table."""
    line = "".join(character for character in " ".join(text.split()) if character.isprintable())
    return re.sub(r"([\\`*_\[\]<>#|~$&])", r"\\\1", line)


def _owner(model: PreTrainedModel) -> PreTrainedModel:
    """The localised model itself, also behind a wrapper."""
    return next(module for module in model.modules() if ATTRIBUTE in module.__dict__)


def _numbers(measured: Measured) -> tuple[dict[str, float], str]:
    """The figures of an evaluation that a reader of the card needs, and how they were measured."""
    statistics = measured.statistics
    layers = len(statistics["fidelity"])
    late = -(-layers // 3)

    def mean(name: str) -> float:
        chosen = [sum(heads) / len(heads) for heads in statistics[name][-late:]]
        return sum(chosen) / late

    numbers = {
        "perplexity": measured.perplexity,
        "fidelity, late layers": mean("fidelity"),
        "fidelity before the dial, late layers": mean("fidelity_undialled"),
        "fidelity of uniform attention": measured.fidelity_uniform,
        BLOCK_LENGTH: measured.mean_block_length,
    }
    return numbers, f"{measured.tokens} predicted tokens; late: the last {late} of {layers} layers"


def _finite(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ProlocError(f"the figure {what!r} is {value!r}; it must be a finite number.")
    return float(value)


def _measurement(figure: Figure) -> tuple[str, str, float, str]:
    return figure.what, figure.text, figure.dial, figure.how


def _words(value: Any) -> str:
    """Settings as a person reads them; long lists are counted only."""
    if isinstance(value, Mapping):
        said = [
            f"{key} ({_words(each)})" if isinstance(each, Mapping) else f"{key} {_words(each)}"
            for key, each in value.items()
        ]
        return ", ".join(said)
    if isinstance(value, (list, tuple)):
        return f"{len(value)} values" if len(value) > _MANY else f"[{', '.join(_words(each) for each in value)}]"
    return "none" if value is None else str(value)


def _block_lengths(measured: list[Figure]) -> dict[str, str]:
    lengths = {figure.text: figure.value for figure in measured if figure.what == BLOCK_LENGTH}
    said = "; ".join(f"{value:.4g} tokens on {escape(text)}" for text, value in lengths.items())
    return {"Mean block length": said} if said else {}


def _measured(measured: list[Figure], weights: str) -> str:
    if not measured:
        return "No figures were measured."
    rows = [
        (
            escape(figure.what),
            f"{figure.value:.4g}",
            f"{figure.dial:.4g}",
            escape(figure.text),
            escape(figure.how) + ("" if figure.weights == weights else " **(not of exactly these weights)**"),
        )
        for figure in measured
    ]
    return _table(("what", "value", "dial", "text", "how"), rows) + "\n\n" + _FIGURES


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _list(entries: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in entries.items() if value)


_WHAT = """\
A partitioner cuts the text into blocks, without ever looking ahead, and every layer has a locality λ between 0 and 1.
When a token reads a token of another block, its attention weight is multiplied by 1 − dial · λ, and the weights are
normalised again: at 0 nothing changes, at 1 the layer reads its own block and the sinks only. The dial can be turned at
any time; at 0 the model is the plain one with the same weights."""

_LOADING = """\
```python
import proloc

model = proloc.from_pretrained("THIS FOLDER OR HUB ID")
with proloc.dial(model, 0.5):
    ...
```

Plain `AutoModelForCausalLM.from_pretrained` refuses this model, by asking for the attention "proloc": it knows nothing
of the locality and would give another model in silence. Where the plain model is what you want (the same as the dial at
0), say so: `AutoModelForCausalLM.from_pretrained(..., attn_implementation="sdpa")`. Engines that bring their own
attention (vLLM, TGI, llama.cpp and the like) read the weights only, and run the plain model."""

_FIGURES = """\
Fidelity is the share of a token's attention that stays on its own block and the sinks; under a dial it is high by
construction, so it stands beside the fidelity of the same scores before the dial, and that of uniform attention."""

_LIMITS = """\
- Locality below 1 is a soft restriction: other blocks weigh less, and a strong score can still bring them in.
- At locality 1 a layer reads nothing outside its block and the sinks directly, but what earlier layers brought in from
  elsewhere is in the block's own hidden states. Which text a prediction was made from is bounded only where all layers
  below are local too.
- Blocks are found by rules on the tokens; whether they are units of meaning depends on the text."""
