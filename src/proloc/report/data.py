"""What every table and figure of a report reads: the plan, its runs and their summary (ours)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from proloc.study.contrasts import Contrast, contrasts
from proloc.study.dials import AtDial, compare_dials
from proloc.study.faithful_statistics import FaithfulnessSummary, summarise_faithfulness
from proloc.study.results import FaithfulnessResult, Metrics, RunResult, StudyRecord, load_faithfulness, load_study
from proloc.study.sensitivity import Change, find_changes
from proloc.study.statistics import REFERENCE, ConditionSummary, Measures, StudySummary, summarise, usable_metrics


@dataclass(frozen=True)
class ReportData:
    """A study as the report reads it.

    Attributes:
        study: the plan.
        runs: every run that is there, failed ones included.
        explained: how faithful the explanations of each run are, where that was measured.
    """

    study: StudyRecord
    runs: Sequence[RunResult]
    explained: Sequence[FaithfulnessResult] = ()

    @classmethod
    def read(cls, folder: Path) -> "ReportData":
        """From a study's folder.

        Raises:
            ProlocError: no study there, or a file that is not of the schema.
        """
        study, runs = load_study(folder)
        return cls(study, runs, load_faithfulness(folder, study))

    @cached_property
    def faithfulness(self) -> FaithfulnessSummary | None:
        """The statistics of the explanations; None where none were measured."""
        return summarise_faithfulness(self.study.name, self.explained) if self.explained else None

    @cached_property
    def summary(self) -> StudySummary:
        """The statistics of the study."""
        return summarise(self.study, self.runs)

    @cached_property
    def dials(self) -> list[AtDial]:
        """Models tuned at many positions of the dial, at every position they were measured at."""
        return compare_dials(self.study, self.runs)

    @cached_property
    def changes(self) -> list[Change]:
        """Pairs of conditions that differ in one setting."""
        return find_changes(self.study, self.runs)

    @cached_property
    def contrasts(self) -> list[Contrast]:
        """Conditions against controls of the same schedule."""
        return contrasts(self.study.conditions, self.runs)

    @cached_property
    def measured(self) -> list[ConditionSummary]:
        """The conditions with at least one finished run, in the order of the plan."""
        return [row for row in self.summary.conditions if row.measures is not None]

    def finished(self, condition: str) -> list[RunResult]:
        """The finished runs of a condition, in the order of the seeds."""
        return [run for run in self.runs if run.condition == condition and usable_metrics(run) is not None]

    def metrics(self, condition: str) -> list[Metrics]:
        """The metrics of the finished runs of a condition."""
        return [metrics for run in self.finished(condition) if (metrics := usable_metrics(run)) is not None]

    def measures(self, condition: str | None) -> Measures | None:
        """The means of a condition; None when it has no finished run or is not in the plan."""
        return next((row.measures for row in self.measured if row.condition == condition), None)

    def localities(self, condition: str) -> list[float]:
        """The schedule of a condition with finished runs."""
        return self.finished(condition)[0].localities

    @property
    def focus(self) -> str | None:
        """The condition whose heads are shown: the quintic where measured, else the first that is no control."""
        names = [row.condition for row in self.measured if not row.control and row.condition != REFERENCE]
        return next((name for name in names if name.startswith("quintic")), names[0] if names else None)
