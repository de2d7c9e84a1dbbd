"""Numbers as text, for tables of all kinds."""

from __future__ import annotations


def count_text(value: float | None) -> str:
    """``1.23 G``; a dash where the number is not known."""
    if value is None:
        return "–"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def bytes_text(value: float | None) -> str:
    """``1.23 MB``, in powers of ten."""
    return "–" if value is None else f"{count_text(value)}B" if value >= 1000 else f"{value:.0f} B"


def saving_text(before: float | None, after: float | None) -> str:
    """``-12.3%``; empty where a number is not known."""
    if not before or after is None:
        return ""
    return f"{100 * (after - before) / before:+.1f}%"


def ratio_text(value: float | None) -> str:
    """``x1.23``; a dash where the number is not known."""
    return "–" if value is None else f"x{value:.2f}"


def difference_text(value: float | None) -> str:
    """``1.2e-07``; a dash where the number is not known."""
    return "–" if value is None else "0" if value == 0 else f"{value:.1e}"
