"""What every part of a study's file has in common."""

from pydantic import BaseModel, ConfigDict, ValidationError


class Section(BaseModel):
    """A part of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def first_problem(error: ValidationError) -> str:
    """The first problem as one sentence that names the key."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ").rstrip(".")
    if problem["type"] == "extra_forbidden":
        return f'unknown key "{place}"; see `proloc study --keys` for what a study can say.'
    value = "" if problem["type"] in ("missing", "value_error") else f" (given: {problem['input']!r})"
    return f'"{place}": {message}{value}.' if place else f"{message}."
