"""Schedules: the locality lambda_l in [0, 1] of every layer (polynomial: arXiv 2511.18375; the others: ours)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from proloc.errors import ProlocError


def _in_unit_interval(name: str, value: float) -> None:
    if not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise ProlocError(f"{name} is {value!r}; it must be a number in [0, 1].")


class Schedule(ABC):
    """A rule for the locality of every layer.

    Attributes:
        kind: the name under which configurations choose it.
    """

    kind: ClassVar[str]

    @abstractmethod
    def localities(self, num_layers: int) -> tuple[float, ...]:
        """lambda_l for l = 0 .. num_layers - 1, each in [0, 1]."""

    def settings(self) -> dict[str, Any]:
        """JSON-able arguments that rebuild this schedule."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Uniform(Schedule):
    """``lambda_l = value``: 0 is the fully distributed model, 1 the fully localist one."""

    kind: ClassVar[str] = "uniform"
    value: float

    def __post_init__(self) -> None:
        _in_unit_interval("value", self.value)

    def localities(self, num_layers: int) -> tuple[float, ...]:
        return (float(self.value),) * num_layers


@dataclass(frozen=True, kw_only=True)
class Polynomial(Schedule):
    """``lambda_l = lambda_max * (l / (L - 1)) ** beta``; beta 1, 3, 5 = linear, cubic, quintic."""

    kind: ClassVar[str] = "polynomial"
    beta: float
    lambda_max: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.beta, (int, float)) or not 0.0 < self.beta < float("inf"):
            raise ProlocError(
                f"beta is {self.beta!r}; it must be a number above 0 (1 = linear, 3 = cubic, 5 = quintic)."
            )
        _in_unit_interval("lambda_max", self.lambda_max)

    def localities(self, num_layers: int) -> tuple[float, ...]:
        last = max(num_layers - 1, 1)
        depths = [1.0] if num_layers == 1 else [layer / last for layer in range(num_layers)]
        return tuple(self.lambda_max * depth**self.beta for depth in depths)


@dataclass(frozen=True, kw_only=True)
class Step(Schedule):
    """``lambda_l = lambda_max`` in the last ``layers`` layers, 0 before."""

    kind: ClassVar[str] = "step"
    layers: int
    lambda_max: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.layers, int) or self.layers < 0:
            raise ProlocError(f"layers is {self.layers!r}; it must be a whole number, 0 or more.")
        _in_unit_interval("lambda_max", self.lambda_max)

    def localities(self, num_layers: int) -> tuple[float, ...]:
        if self.layers > num_layers:
            raise ProlocError(f"a step over {self.layers} layers needs as many; the model has {num_layers}.")
        return (0.0,) * (num_layers - self.layers) + (float(self.lambda_max),) * self.layers


class Explicit(Schedule):
    """A locality for every layer, written out."""

    kind = "explicit"

    def __init__(self, values: Sequence[float]) -> None:
        for layer, value in enumerate(values):
            _in_unit_interval(f"the locality of layer {layer}", value)
        self.values = tuple(float(value) for value in values)

    def localities(self, num_layers: int) -> tuple[float, ...]:
        if len(self.values) != num_layers:
            raise ProlocError(f"the schedule lists {len(self.values)} localities; the model has {num_layers} layers.")
        return self.values


class Reversed(Schedule):
    """Another schedule upside down, local first and distributed last: the control for "late is better than early"."""

    kind = "reversed"

    def __init__(self, schedule: Schedule) -> None:
        if not isinstance(schedule, Schedule):
            raise ProlocError(f"what is reversed is {schedule!r}; it must be a schedule.")
        self.schedule = schedule

    def localities(self, num_layers: int) -> tuple[float, ...]:
        return self.schedule.localities(num_layers)[::-1]

    def settings(self) -> dict[str, Any]:
        return {"schedule": schedule_to_dict(self.schedule)}


SCHEDULES: dict[str, type[Schedule]] = {kind.kind: kind for kind in (Uniform, Polynomial, Step, Explicit, Reversed)}


def schedule_to_dict(schedule: Schedule) -> dict[str, Any]:
    """JSON-able form, ``{"kind": ..., **settings}``."""
    return {"kind": schedule.kind, **schedule.settings()}


def schedule_from_dict(data: dict[str, Any]) -> Schedule:
    """The inverse of ``schedule_to_dict``.

    Raises:
        ProlocError: unknown kind, unknown or missing setting, impossible value.
    """
    settings = dict(data)
    kind = settings.pop("kind", None)
    if not isinstance(kind, str) or kind not in SCHEDULES:
        raise ProlocError(f"there is no schedule {kind!r}; choose one of {', '.join(SCHEDULES)}.")
    if kind == Reversed.kind and isinstance(settings.get("schedule"), dict):
        settings["schedule"] = schedule_from_dict(settings["schedule"])
    try:
        return SCHEDULES[kind](**settings)
    except TypeError as error:
        raise ProlocError(f"the schedule {kind!r} does not take these settings: {error}.") from error
