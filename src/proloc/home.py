"""Where this project keeps what it downloads or compiles for one user."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$PROLOC_HOME``, else ``$XDG_CACHE_HOME/proloc``, else ``~/.cache/proloc``."""
    if home := os.environ.get("PROLOC_HOME"):
        return Path(home).expanduser()
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache).expanduser() / "proloc"
    return Path.home() / ".cache" / "proloc"
