"""A study's configuration: one TOML file, every key described here, unknown keys refused."""

from proloc.study.config.blocks import ROLES, BlocksSection
from proloc.study.config.condition import REFERENCE, STANDARD_CONDITIONS, Condition
from proloc.study.config.explain import HELD_OUT, QUESTION, ExplainSection
from proloc.study.config.reading import describe_keys, load_config, with_budget
from proloc.study.config.section import first_problem
from proloc.study.config.study import SECTIONS, StudyConfig
from proloc.study.config.text import TextSection
from proloc.study.config.training import PenaltyKind, PenaltySection

__all__ = [
    "HELD_OUT",
    "QUESTION",
    "REFERENCE",
    "ROLES",
    "SECTIONS",
    "STANDARD_CONDITIONS",
    "BlocksSection",
    "Condition",
    "ExplainSection",
    "PenaltyKind",
    "PenaltySection",
    "StudyConfig",
    "TextSection",
    "describe_keys",
    "first_problem",
    "load_config",
    "with_budget",
]
