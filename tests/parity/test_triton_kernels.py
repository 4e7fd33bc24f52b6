"""The Triton kernels under Triton's interpreter, which needs no GPU; it must be chosen before Triton is imported."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from attention_problems import answers, assert_same, make

CASES = [
    {"queries": 21, "groups": 2, "padding": 9, "retain": 0.5, "halo": 1},
    {"queries": 70, "cached": 20, "head_dim": 20, "window": 30, "sinks": 2, "batch": 1, "retain": 0.0},
    {"queries": 70, "batch": 1, "kv_heads": 1, "retain": 0.0, "wanted": "nothing", "halo": 2},
    {"queries": 9, "batch": 1, "retain": 1.0, "wanted": "fidelity"},
]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_triton_kernels_equal_the_float64_reference_under_the_interpreter():
    folders = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": folders}
    subprocess.run([sys.executable, __file__], check=True, env=environment, timeout=300)


def main() -> None:
    from proloc.attention import reference, triton

    for case in CASES:
        problem = make(**case)
        oracle = answers(reference.attend_ranges, problem, torch.float64)
        assert_same(answers(triton.attend_ranges, problem), oracle, 1e-5)


if __name__ == "__main__":
    main()
