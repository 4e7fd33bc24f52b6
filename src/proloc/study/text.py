"""Where a study's text comes from."""

import hashlib
from pathlib import Path

from proloc.errors import ProlocError
from proloc.study.config import ExplainSection, TextSection
from proloc.text import builtin_text, read_file


def read_text(section: TextSection) -> str:
    """The whole text of a study.

    Raises:
        ProlocError: no such file or dataset, not UTF-8, no such column, or nothing in it.
    """
    if section.file is not None:
        text, source = read_file(Path(section.file)), section.file
    elif section.dataset is not None:
        text, source = _read_dataset(section), section.dataset
    else:
        text, source = builtin_text(), "pydoc"
    if not text.strip():
        raise ProlocError(f"the text {source} is empty.")
    return text


def read_explained(section: ExplainSection | None) -> dict[str, str]:
    """The texts that are explained beside the study's own, by name.

    Raises:
        ProlocError: no such file, not UTF-8, or nothing in it.
    """
    texts = {} if section is None else {name: read_file(Path(file)) for name, file in section.texts.items()}
    if empty := [name for name, text in texts.items() if not text.strip()]:
        raise ProlocError(f"explain.texts.{empty[0]} is empty.")
    return texts


def digest(text: str) -> str:
    """Fingerprint of a text, so that a folder notices when the file behind a name has changed."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_explained(section: ExplainSection | None) -> dict[str, str]:
    """Fingerprints of the texts that are explained beside the study's own, by name; raises as ``read_explained``."""
    return {name: digest(text) for name, text in read_explained(section).items()}


def describe_source(section: TextSection) -> str:
    """A short name for the text, without the folders it lies in."""
    if section.file is not None:
        return Path(section.file).name
    if section.dataset is not None:
        name = Path(section.dataset).name if Path(section.dataset).exists() else section.dataset
        parts = (name, section.dataset_config, section.split)
        return "/".join(part for part in parts if part)
    return "the topics of Python's own documentation (pydoc_data.topics)"


def _read_dataset(section: TextSection) -> str:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ProlocError('text from a dataset needs the package datasets: pip install "proloc[datasets]".') from error
    try:
        rows = load_dataset(section.dataset, section.dataset_config, split=section.split)
    except Exception as error:  # datasets raises many kinds; all of them mean that the name cannot be had
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ProlocError(f"cannot load the dataset {section.dataset}: {reason}") from error
    if section.column not in rows.column_names:
        columns = ", ".join(rows.column_names)
        raise ProlocError(f"the dataset {section.dataset} has no column {section.column!r}; choose one of {columns}.")
    return "\n\n".join(str(value) for value in rows[section.column])
