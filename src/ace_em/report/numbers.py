"""Formatting of numbers in the report: units, rounding, a dash for unknown values."""

import math


def show(value: float, unit: str = "", digits: int = 3) -> str:
    """A number with its unit, a dash if unknown."""
    return f"{value:.{digits}g}{unit}".replace("-", "−") if math.isfinite(value) else "–"


def show_count(n: float) -> str:
    """A count, a dash if unknown."""
    return f"{n:,.0f}" if math.isfinite(n) else "–"


def show_time(seconds: float) -> str:
    """A duration in s, min and s, or h and min."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def show_resolution(angstrom: float, crossings: dict[float, float], threshold: float = 0.143) -> str:
    """A resolution, with ≤ if the curve never falls below the threshold."""
    bound = math.isnan(crossings.get(threshold, 0.0)) and math.isfinite(angstrom)
    return ("≤ " if bound else "") + show(angstrom, " Å")


def show_share(share: float, digits: int = 1) -> str:
    """A share in per cent; values below 1 are never rounded up to 100 %."""
    if share < 1:
        share = min(share, 1 - 10.0 ** -(digits + 2))
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else "–"


def show_crossings(crossings: dict[float, float]) -> str:
    """Resolution at which a curve falls below each threshold, as text."""
    return "; ".join(
        f"{threshold:g} at {angstrom:.3g} Å" if math.isfinite(angstrom) else f"above {threshold:g} to the last shell"
        for threshold, angstrom in crossings.items()
    )
