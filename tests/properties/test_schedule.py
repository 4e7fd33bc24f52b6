"""Schedules: what they promise for every depth."""

import json

import hypothesis.strategies as st
import pytest
from hypothesis import given

from proloc.errors import ProlocError
from proloc.schedule import (
    Explicit,
    Polynomial,
    Reversed,
    Schedule,
    Step,
    Uniform,
    schedule_from_dict,
    schedule_to_dict,
)

unit = st.floats(0, 1)
polynomials = st.builds(Polynomial, beta=st.floats(0.1, 9), lambda_max=unit)


@given(polynomials, st.integers(1, 80))
def test_a_polynomial_rises_from_zero_to_lambda_max(schedule: Polynomial, num_layers: int):
    values = schedule.localities(num_layers)
    assert len(values) == num_layers
    assert values[-1] == schedule.lambda_max
    assert list(values) == sorted(values)
    assert num_layers == 1 or values[0] == 0.0


@given(st.integers(2, 80))
def test_steeper_polynomials_are_nowhere_more_local(num_layers: int):
    linear, cubic, quintic = (Polynomial(beta=beta).localities(num_layers) for beta in (1, 3, 5))
    assert all(a >= b >= c for a, b, c in zip(linear, cubic, quintic, strict=True))


def test_the_quintic_of_five_layers_is_what_one_computes_by_hand():
    assert Polynomial(beta=5).localities(5) == (0.0, 1 / 1024, 1 / 32, 243 / 1024, 1.0)


@given(polynomials, st.integers(1, 30))
def test_reversing_twice_changes_nothing(schedule: Polynomial, num_layers: int):
    assert Reversed(Reversed(schedule)).localities(num_layers) == schedule.localities(num_layers)
    assert Reversed(schedule).localities(num_layers) == schedule.localities(num_layers)[::-1]


def test_a_step_localises_the_last_layers():
    assert Step(layers=2, lambda_max=0.5).localities(4) == (0.0, 0.0, 0.5, 0.5)


@given(st.one_of(polynomials, st.builds(Uniform, value=unit), st.builds(Step, layers=st.just(2), lambda_max=unit)))
def test_a_schedule_survives_json(schedule: Schedule):
    for each in (schedule, Reversed(schedule), Explicit(schedule.localities(4))):
        assert schedule_from_dict(json.loads(json.dumps(schedule_to_dict(each)))).localities(4) == each.localities(4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Polynomial(beta=0), "beta is 0"),
        (lambda: Polynomial(beta=float("nan")), "beta is nan"),
        (lambda: Polynomial(beta=1, lambda_max=1.5), "lambda_max is 1.5"),
        (lambda: Uniform(value=-0.1), "value is -0.1"),
        (lambda: Explicit([0.0, 2.0]), "locality of layer 1 is 2.0"),
        (lambda: Explicit([0.0, 1.0]).localities(3), "the model has 3 layers"),
        (lambda: Step(layers=9).localities(3), "the model has 3"),
        (lambda: schedule_from_dict({"kind": "septic"}), "no schedule 'septic'; choose one of uniform, polynomial"),
        (lambda: schedule_from_dict({"kind": "polynomial", "alpha": 1}), "does not take these settings"),
    ],
)
def test_impossible_schedules_are_refused_by_name(build, message):
    with pytest.raises(ProlocError, match=message):
        build()
