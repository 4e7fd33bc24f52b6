"""How numbers are written, the same in the terminal, the page and the files (ours)."""

from proloc.study.statistics import Estimate

NONE = "–"


def fixed(value: float | None, digits: int) -> str:
    """A number with so many decimals, or a dash for None."""
    return NONE if value is None else f"{value:.{digits}f}"


def with_interval(estimate: Estimate | None, digits: int) -> str:
    """``mean [low, high]``; the mean alone where there is no interval."""
    if estimate is None:
        return NONE
    mean = fixed(estimate.mean, digits)
    if estimate.low is None or estimate.high is None:
        return mean
    return f"{mean} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def p_value(value: float | None) -> str:
    """A p-value to three decimals; a smaller one as a bound, because more digits would claim too much."""
    if value is None:
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def percent(share: float) -> str:
    """A share in [0, 1] as whole percent."""
    return f"{100 * share:.0f}%"


def count(num: int, singular: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{num:,} {singular}" if num == 1 else f"{num:,} {singular}s"


def listed(parts: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def capitalised(name: str) -> str:
    """A name as the first word of a sentence."""
    return name[:1].upper() + name[1:]
