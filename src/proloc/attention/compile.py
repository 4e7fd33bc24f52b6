"""Compiles the kernel of ``fused.cpp`` with the system's compiler at first use and keeps it in the user's cache."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path

from proloc.errors import ProlocError
from proloc.home import cache_dir

# Without traps and errno the compiler may vectorise; NaN and infinity keep their meaning.
FLAGS = ("-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread")
SECONDS = 120


@cache
def load_kernel() -> ctypes.CDLL:
    """The compiled kernel, from the cache or compiled now (some seconds).

    Raises:
        ProlocError: no compiler, or one that fails; the message says which.
    """
    compiler = _find_compiler()
    source = (resources.files("proloc.attention") / "fused.cpp").read_bytes()
    native = "-mcpu=native" if platform.machine().lower() in ("arm64", "aarch64") else "-march=native"
    command = [compiler, *FLAGS, native]
    version = _run([compiler, "--version"])
    fingerprint = hashlib.sha256(b"\0".join([source, " ".join(command).encode(), version, _cpu_flags()]))
    library = cache_dir() / "kernels" / f"fused-{fingerprint.hexdigest()[:20]}.so"
    if not library.is_file():
        _compile(command, source, library)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise ProlocError(f"the compiled kernel {library} does not load: {error}") from error


def _find_compiler() -> str:
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    for name in wanted:
        if found := shutil.which(name):
            return found
    raise ProlocError(f"no C++ compiler was found (looked for {', '.join(wanted)}).")


def _compile(command: list[str], source: bytes, library: Path) -> None:
    """Compile beside the target and rename, so that another process never sees half a file."""
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            code, compiled = Path(folder) / "fused.cpp", Path(folder) / "fused.so"
            code.write_bytes(source)
            _run([*command, str(code), "-o", str(compiled)])
            compiled.replace(library)
    except OSError as error:
        raise ProlocError(f"the kernel cannot be kept in {library.parent}: {error}") from error


def _run(command: list[str]) -> bytes:
    try:
        return subprocess.run(command, check=True, capture_output=True, timeout=SECONDS).stdout
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip()[-300:]
        raise ProlocError(f"{command[0]} failed: {last}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProlocError(f"{command[0]} failed: {error}") from error


def _cpu_flags() -> bytes:
    """What "native" means here; a cache folder may be shared by machines with different processors."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
    return next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")
