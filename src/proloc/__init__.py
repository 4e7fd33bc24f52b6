"""proloc: a locality dial for Hugging Face decoder language models.

Names are imported when first used, so that ``import proloc`` and the commands that need no model stay fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from proloc.blocks import ChangePointBlocks as ChangePointBlocks
    from proloc.blocks import DelimiterBlocks as DelimiterBlocks
    from proloc.blocks import DriftBlocks as DriftBlocks
    from proloc.blocks import FixedBlocks as FixedBlocks
    from proloc.blocks import GivenBlocks as GivenBlocks
    from proloc.blocks import Partitioner as Partitioner
    from proloc.blocks import RandomBlocks as RandomBlocks
    from proloc.blocks import RecruitmentBlocks as RecruitmentBlocks
    from proloc.blocks import SentenceBlocks as SentenceBlocks
    from proloc.blocks import SurpriseBlocks as SurpriseBlocks
    from proloc.blocks import TilingBlocks as TilingBlocks
    from proloc.errors import ProlocError as ProlocError
    from proloc.evaluation import evaluate as evaluate
    from proloc.explaining.explain import explain as explain
    from proloc.hf import LocalCache as LocalCache
    from proloc.hf import add_figures as add_figures
    from proloc.hf import cutting as cutting
    from proloc.hf import describe as describe
    from proloc.hf import dial as dial
    from proloc.hf import dropping_blocks as dropping_blocks
    from proloc.hf import from_pretrained as from_pretrained
    from proloc.hf import localize as localize
    from proloc.hf import recording as recording
    from proloc.hf import set_dial as set_dial
    from proloc.penalty import DialledKL as DialledKL
    from proloc.penalty import Entropy as Entropy
    from proloc.penalty import GroupSparsity as GroupSparsity
    from proloc.penalty import LowFidelity as LowFidelity
    from proloc.schedule import Explicit as Explicit
    from proloc.schedule import Polynomial as Polynomial
    from proloc.schedule import Reversed as Reversed
    from proloc.schedule import Step as Step
    from proloc.schedule import Uniform as Uniform
    from proloc.training import LocalityTrainer as LocalityTrainer

_HOME = {
    "proloc.blocks": (
        "ChangePointBlocks",
        "DelimiterBlocks",
        "DriftBlocks",
        "FixedBlocks",
        "GivenBlocks",
        "Partitioner",
        "RandomBlocks",
        "RecruitmentBlocks",
        "SentenceBlocks",
        "SurpriseBlocks",
        "TilingBlocks",
    ),
    "proloc.errors": ("ProlocError",),
    "proloc.evaluation": ("evaluate",),
    "proloc.explaining.explain": ("explain",),
    "proloc.hf": (
        "LocalCache",
        "add_figures",
        "cutting",
        "describe",
        "dial",
        "dropping_blocks",
        "from_pretrained",
        "localize",
        "recording",
        "set_dial",
    ),
    "proloc.penalty": ("DialledKL", "Entropy", "GroupSparsity", "LowFidelity"),
    "proloc.schedule": ("Explicit", "Polynomial", "Reversed", "Step", "Uniform"),
    "proloc.training": ("LocalityTrainer",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'proloc' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
