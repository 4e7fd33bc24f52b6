"""What a study can say about its text."""

from typing import Literal

from pydantic import Field, model_validator

from proloc.study.config.section import Section


class TextSection(Section):
    """What is tuned on and what is held out: exactly one of ``file``, ``dataset`` and ``builtin``."""

    file: str | None = None
    """A UTF-8 text file; a relative path is relative to the TOML file."""
    dataset: str | None = None
    """A name for ``datasets.load_dataset``."""
    dataset_config: str | None = None
    """The dataset's configuration, for example "wikitext-2-raw-v1"."""
    split: str = "train"
    """The dataset's split."""
    column: str = "text"
    """The dataset's column of text."""
    builtin: Literal["pydoc"] | None = None
    """Text that comes with Python itself: the topics of its documentation."""
    held_out: float = Field(default=0.1, gt=0.0, lt=1.0)
    """The last share of the tokens, never tuned on."""
    max_held_out_windows: int | None = Field(default=None, ge=1)
    """Evaluate on at most this many windows, spread evenly over the held-out part; None = all."""
    max_train_windows: int | None = Field(default=None, ge=1)
    """Tune on at most this many windows, spread evenly over the rest; None = all."""

    @model_validator(mode="after")
    def _one_source(self) -> "TextSection":
        given = [name for name in ("file", "dataset", "builtin") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of file, dataset and builtin, not {given or 'none'}")
        return self
