"""What a single setting does: pairs of conditions that differ in one of them only (ours)."""

from collections.abc import Mapping, Sequence
from typing import Any

from proloc.study.results import Metrics, Record, RunResult, StudyRecord
from proloc.study.statistics import REFERENCE, Estimate, late_mean, paired_ratio, t_interval, usable_metrics

# Parts of a run's configuration that are names, bookkeeping or the same for a whole study.
_APART = ("text", "model", "keep_models", "dials", "partitioners", "match", "blocks")
# Settings that go together: a sink token takes the place of the first token as a sink.
_TOGETHER = {"sink_token": "sinks", "training.teacher": "training.distil", "budget.push": "budget.cost"}


class Change(Record):
    """One condition against another that differs from it in one setting.

    Attributes:
        setting: its key in a study's file; for blocks, ``condition.blocks``.
        before, after: its values, as text.
        ratio_before, ratio_after: perplexities over that of the reference, same seeds.
        over: perplexity of ``condition`` over that of ``base``, same seeds.
        late_undialled_before, late_undialled_after: undialled fidelity, last third of the layers.
    """

    base: str
    condition: str
    setting: str
    before: str
    after: str
    ratio_before: Estimate | None
    ratio_after: Estimate | None
    over: Estimate
    late_undialled_before: Estimate
    late_undialled_after: Estimate


def find_changes(study: StudyRecord, runs: Sequence[RunResult]) -> list[Change]:
    """For every condition, the first one of the plan that differs from it in one setting and is measured too."""
    done = {name: [run for run in runs if run.condition == name and usable_metrics(run)] for name in study.conditions}
    measured = {name: found for name, found in done.items() if found and "condition" in found[0].config}
    reference = _by_seed(measured.get(REFERENCE, []))
    changes = []
    names = [name for name in measured if name != REFERENCE]
    for index, name in enumerate(names):
        for base in names[:index]:
            setting = _difference(measured[base][0], measured[name][0])
            ours, theirs = _by_seed(measured[name]), _by_seed(measured[base])
            over = paired_ratio(ours, theirs)
            if setting is None or over is None:
                continue
            before, after = (_settings(measured[each][0]) for each in (base, name))
            changes.append(
                Change(
                    base=base,
                    condition=name,
                    setting=setting,
                    before=_value(before, setting, list(theirs.values())),
                    after=_value(after, setting, list(ours.values())),
                    ratio_before=paired_ratio(theirs, reference),
                    ratio_after=paired_ratio(ours, reference),
                    over=over,
                    late_undialled_before=_late(theirs),
                    late_undialled_after=_late(ours),
                )
            )
            break
    return changes


def _settings(run: RunResult) -> dict[str, Any]:
    """The configuration of a run, flat: ``{"penalty.phi": 0.5, "condition.schedule.beta": 5, ...}``."""
    flat: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                add(f"{prefix}.{key}" if prefix else key, part)
        else:
            flat[prefix] = value

    condition = {key: run.config.get("condition", {}).get(key) for key in ("schedule", "blocks")}
    rest = {key: value for key, value in run.config.items() if key != "condition"}
    add("", {**rest, "condition": condition})
    if flat.get("mode") == "hard":  # no penalty is there to have settings
        flat = {key: value for key, value in flat.items() if not key.startswith("penalty.")}
    apart = tuple(f"{name}." for name in _APART)
    return {key: value for key, value in flat.items() if key not in _APART and not key.startswith(apart)}


def _difference(base: RunResult, other: RunResult) -> str | None:
    """The one setting in which two runs differ, or None."""
    ours, theirs = _settings(other), _settings(base)
    keys = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    settings = {_TOGETHER.get(key, key) for key in keys}
    return settings.pop() if len(settings) == 1 else None


def _value(settings: Mapping[str, Any], setting: str, metrics: Sequence[Metrics]) -> str:
    if setting == "condition.blocks":
        length = sum(each.mean_block_length for each in metrics) / len(metrics)
        return f"{settings[setting]} ({length:.0f} tokens)"
    if setting == "sinks":
        token = " and a token of its own" if settings.get("sink_token") else ""
        return f"{settings['sinks']}{token}"
    value = settings.get(setting)
    return "–" if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)


def _by_seed(runs: Sequence[RunResult]) -> dict[int, Metrics]:
    return {run.seed: metrics for run in runs if (metrics := usable_metrics(run)) is not None}


def _late(metrics: Mapping[int, Metrics]) -> Estimate:
    return t_interval([late_mean(each.fidelity_undialled.per_layer) for each in metrics.values()])
