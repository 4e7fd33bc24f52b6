"""Reading a study from its TOML file, and telling what such a file can say."""

import tomllib
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from proloc.errors import ProlocError
from proloc.study.config.section import first_problem
from proloc.study.config.study import SECTIONS, StudyConfig

DEMO = "demo"


def load_config(path: str | Path) -> StudyConfig:
    """Read a study's TOML file, or the demo's when ``path`` is "demo".

    Raises:
        ProlocError: no such file, not TOML, or a key or value that is not right; the message names it.
    """
    if str(path) == DEMO:
        content, folder = resources.files("proloc.study").joinpath("demo.toml").read_text(encoding="utf-8"), Path()
    else:
        try:
            content, folder = Path(path).read_text(encoding="utf-8"), Path(path).parent
        except (OSError, UnicodeDecodeError) as error:
            raise ProlocError(f'cannot read the study "{path}": {error}; give a TOML file, or "{DEMO}".') from error
    try:
        data = tomllib.loads(content)
        config = StudyConfig.model_validate(data)
    except tomllib.TOMLDecodeError as error:
        raise ProlocError(f"{path} is not valid TOML: {error}.") from error
    except ValidationError as error:
        raise ProlocError(f"{path}: {first_problem(error)}") from error
    return _with_paths(config, folder)


def _with_paths(config: StudyConfig, folder: Path) -> StudyConfig:
    """The same with every file as an absolute path; those in the study's file are relative to its folder."""

    def absolute(file: str) -> str:
        try:
            return str((folder / Path(file).expanduser()).resolve())
        except (OSError, RuntimeError, ValueError) as error:
            raise ProlocError(f"the text's file {file!r} is no path: {error}.") from error

    if config.text.file is not None:
        text = config.text.model_copy(update={"file": absolute(config.text.file)})
        config = config.model_copy(update={"text": text})
    if config.explain is not None and config.explain.texts:
        texts = {name: absolute(file) for name, file in config.explain.texts.items()}
        config = config.model_copy(update={"explain": config.explain.model_copy(update={"texts": texts})})
    return config


def with_budget(config: StudyConfig, cost: float) -> StudyConfig:
    """The same study with a budget for every condition but the reference and those with a budget of their own.

    Raises:
        ProlocError: a condition cannot have one.
    """
    data = config.model_dump(exclude_unset=True)
    try:
        return StudyConfig.model_validate({**data, "budget": {**data.get("budget", {}), "cost": cost}})
    except ValidationError as error:
        raise ProlocError(first_problem(error)) from error


def describe_keys() -> str:
    """Every key of a study's file with its default and meaning, as text."""
    lines: list[str] = []
    for name, section in SECTIONS.items():
        lines.append(f"\n[{name}]" if name else "top level")
        for key, field in section.model_fields.items():
            default = "" if field.is_required() or (name == "" and key in SECTIONS) else f" = {field.default!r}"
            lines.append(f"  {key}{default}" + (f"\n      {field.description}" if field.description else ""))
    return "\n".join(lines)
