"""Versions of what computed a result."""

import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """By name; packages that are not installed are left out."""
    found = {"proloc": import_module("proloc").__version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "accelerate", "peft", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
