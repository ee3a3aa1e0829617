"""Numbers as people read them: per cent, points, sizes, powers of ten."""

from __future__ import annotations

from markupsafe import Markup

from pipeline.report.results import Estimate

_NONE = "–"


def percent(value: float | None) -> str:
    """Write a fraction as per cent, without the sign."""
    return _NONE if value is None else f"{100 * value:.2f}"


def points(difference: Estimate) -> str:
    """Write a difference of fractions in percentage points, with its standard error."""
    mean = f"{round(100 * difference.mean, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}")
    return mean if difference.error is None else tied(f"{mean} ± {100 * difference.error:.2f}")


def number(value: float | None, digits: int = 0) -> str:
    """Write a number with separators between thousands."""
    return _NONE if value is None else f"{value:,.{digits}f}"


def metric(value: float | None) -> str:
    """Write a large number with three digits and the prefix of its unit."""
    if value is None:
        return _NONE
    for prefix in ("", " k", " M", " G"):
        if value < 999.5:
            return f"{value:.3g}{prefix}"
        value /= 1000
    return f"{value:.3g} T"


def size(count_bytes: float) -> str:
    """Write a number of bytes in a unit that suits it."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count_bytes < 1000:
            return f"{count_bytes:.0f} {unit}" if unit == "bytes" else f"{count_bytes:.1f} {unit}"
        count_bytes /= 1000
    return f"{count_bytes:.1f} TB"


def scientific(value: float | None) -> str:
    """Write a small number as a power of ten."""
    if value is None:
        return _NONE
    if value == 0:
        return Markup("0")
    mantissa, exponent = f"{value:.1e}".split("e")
    power = str(int(exponent)).replace("-", "\N{MINUS SIGN}")
    return Markup("{} × 10<sup>{}</sup>").format(mantissa, power)


def tied(text: str) -> str:
    """Keep a short phrase on one line."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")
