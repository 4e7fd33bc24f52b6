"""A study says when the precision it asks for is slow on the machine it runs on."""

import pytest

from proloc.study import precision
from proloc.study.precision import bf16_slowdown, precision_warning


def test_what_is_slow_is_said_with_its_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bf16_slowdown", lambda: 41.7)
    warning = precision_warning("bf16")
    assert warning is not None
    assert "42 times" in warning
    assert precision_warning("fp32") is None


def test_what_is_fast_is_not_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bf16_slowdown", lambda: 0.6)
    assert precision_warning("bf16") is None


def test_the_slowdown_is_measured() -> None:
    assert 0.0 <= bf16_slowdown() < 10_000
