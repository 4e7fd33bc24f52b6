"""How faithful every attribution is over many passages: measured one by one, kept on disk, summed up at the end."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from transformers import PreTrainedModel

from proloc.errors import ProlocError
from proloc.explaining.ablate import Ablator, How
from proloc.explaining.measured import judge, measure
from proloc.explaining.measures import lds, precision_at_1
from proloc.explaining.passage import Passage
from proloc.explaining.record import Faithfulness, PassageFaithfulness
from proloc.explaining.surrogate import Example, Values, headed, learn_heads
from proloc.files import write_atomically

FOLDS = 5
AT2 = "learned-heads"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A passage to measure faithfulness on.

    Attributes:
        name: of the passage, and of its file.
        kind: passages of one kind are summed up together, and heads are learned from one kind for that kind.
        true_source: the number of the source that holds the answer; None = not known.
    """

    name: str
    kind: str
    passage: Passage
    true_source: int | None = None


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is spent on one passage.

    Attributes:
        ablations: random ones that faithfulness is measured on.
        fitted: others that the surrogate and the weights of heads are fitted to.
        how: whether edges are cut or tokens removed.
        erasure: whether top drop, comprehensiveness and sufficiency are measured too.
    """

    ablations: int = 64
    fitted: int = 32
    how: How = "removed"
    erasure: bool = True


def measure_faithfulness(
    model: PreTrainedModel,
    probes: Sequence[Probe],
    effort: Effort,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[PassageFaithfulness]:
    """Faithfulness of every attribution on every passage.

    Each passage's ablations are the same for every model. What was measured is kept in ``folder``, one file a passage,
    and never measured again; heads are learned from the other passages of a kind, in five parts.

    Args:
        model: localised; its dial stays where it stands.
        probes: with names that differ.
        effort: the same for all of them.
        folder: of this model's files.
        progress: called with passages done and in all.
    """
    training = model.training
    model.eval()
    try:
        for number, probe in enumerate(probes):
            path = _path(folder, probe)
            if not path.is_file():
                write_atomically(path, _measure(model, probe, effort, number))
            progress(number + 1, len(probes))
    finally:
        model.train(training)
    results, arrays = zip(*(_load(_path(folder, probe)) for probe in probes), strict=True)
    return _with_heads(results, arrays)


def _path(folder: Path, probe: Probe) -> Path:
    return folder / f"{probe.name}.safetensors"


def _measure(model: PreTrainedModel, probe: Probe, effort: Effort, seed: int) -> bytes:
    """The file of one passage: what learning heads needs as arrays, the rest as metadata."""
    passage = probe.passage
    ablator = Ablator(model, passage, effort.how)
    measured = measure(model, passage, ablator, ablations=effort.ablations, fitted=effort.fitted, seed=seed)
    methods = {
        name: judge(
            scores,
            measured,
            ablator,
            num_targets=passage.num_targets,
            erasure=effort.erasure,
            true_source=probe.true_source,
        )
        for name, scores in measured.scores.items()
    }
    result = PassageFaithfulness(
        passage=probe.name,
        kind=probe.kind,
        num_sources=len(passage.sources),
        num_reaching=int(measured.readout.reaches.sum()),
        log_prob=ablator.intact / passage.num_targets,
        true_source=probe.true_source,
        methods=methods,
        blocks_read=measured.readout.blocks_read.tolist(),
        passes=ablator.tokens_computed / passage.read,
    )
    arrays = {
        "attention": measured.readout.attention.float().contiguous(),
        "kept": torch.from_numpy(measured.kept),
        "log_probs": torch.from_numpy(measured.log_probs),
        "others": torch.from_numpy(measured.others),
        "others_log_probs": torch.from_numpy(measured.others_log_probs),
    } | {f"scores.{name}": torch.from_numpy(scores.copy()) for name, scores in measured.scores.items()}
    content: bytes = save(arrays, {"passage": result.model_dump_json()})
    return content


def _load(path: Path) -> tuple[PassageFaithfulness, dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            result = PassageFaithfulness.model_validate(json.loads(file.metadata()["passage"]))
            return result, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # safetensors and pydantic raise kinds of their own
        raise ProlocError(f"{path} cannot be read ({error}); delete it to have it measured again.") from error


def _with_heads(
    results: Sequence[PassageFaithfulness], arrays: Sequence[dict[str, torch.Tensor]]
) -> list[PassageFaithfulness]:
    """The passages with the learned heads as one more method, learned from the other four parts of their kind."""
    found = list(results)
    for kind in dict.fromkeys(result.kind for result in results):
        alike = [number for number, result in enumerate(results) if result.kind == kind]
        for part in range(FOLDS):
            examples = _examples(arrays[number] for place, number in enumerate(alike) if place % FOLDS != part)
            if not any(example.log_probs.max() > example.log_probs.min() for example in examples):
                continue
            heads = learn_heads(examples)
            for number in alike[part::FOLDS]:
                found[number] = _with_method(
                    results[number], arrays[number], headed(arrays[number]["attention"], heads)
                )
    return found


def _with_method(result: PassageFaithfulness, arrays: dict[str, torch.Tensor], scores: Values) -> PassageFaithfulness:
    learned = Faithfulness(
        lds=lds(scores, arrays["kept"].numpy(), arrays["log_probs"].numpy()),
        hit=None if result.true_source is None else precision_at_1(scores, result.true_source),
    )
    return result.model_copy(update={"methods": {**result.methods, AT2: learned}})


def _examples(passages: Iterable[dict[str, torch.Tensor]]) -> list[Example]:
    return [
        Example(
            attention=passage["attention"],
            kept=passage["others"].numpy(),
            log_probs=passage["others_log_probs"].numpy(),
        )
        for passage in passages
    ]
