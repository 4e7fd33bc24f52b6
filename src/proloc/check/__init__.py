"""``proloc check``: is this model, localised, exactly what it says it is? Every way of running it against an oracle."""

from proloc.check.finding import Finding, Verdict
from proloc.check.load import load_subject
from proloc.check.run import WAYS, Way, check_model, report_dict, run_way
from proloc.check.subject import Subject
from proloc.check.table import print_report

__all__ = [
    "WAYS",
    "Finding",
    "Subject",
    "Verdict",
    "Way",
    "check_model",
    "load_subject",
    "print_report",
    "report_dict",
    "run_way",
]
