"""Plots of the report, as SVG text to stand inside a page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS, OTHERS, REFERENCE = "#1b6ca8", "#9aa5b1", "#c2410c"


@dataclass(frozen=True)
class Point:
    """An estimate with its 95% interval, which may be unknown."""

    label: str
    value: float
    lower: float | None
    upper: float | None
    ours: bool


def intervals(points: Sequence[Point], title: str, reference: tuple[str, float] | None = None) -> str:
    """One line a point, its interval as a whisker; `reference` is a dashed line with its name."""
    figure = _figure(6.4, 0.8 + 0.36 * len(points))
    axes = figure.add_subplot()
    for place, point in enumerate(reversed(points)):
        colour = OURS if point.ours else OTHERS
        if point.lower is not None and point.upper is not None:
            axes.plot([point.lower, point.upper], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(point.value, place, "o", color=colour, markersize=7)
    if reference is not None:
        name, value = reference
        axes.axvline(value, color=REFERENCE, linestyle="--", linewidth=1.2, label=name)
        axes.legend(frameon=False, fontsize=8, loc="lower left")
    axes.set_yticks(range(len(points)), [point.label for point in reversed(points)])
    axes.set_ylim(-0.6, len(points) - 0.4)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    return _svg(figure)


def trend(days: Sequence[date], series: Sequence[tuple[str, Sequence[float | None]]], title: str) -> str:
    """One line a series over days, the first in our colour; None = not known on that day."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure(6.4, 2.4)
    axes = figure.add_subplot()
    for place, (label, values) in enumerate(series):
        known = [float("nan") if value is None else value for value in values]
        axes.plot([str(day)[5:] for day in days], known, marker="o", markersize=3, color=OURS if place == 0 else OTHERS, label=label)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def _figure(width: float, height: float) -> Figure:
    # A figure of its own, without pyplot: no global state, and no window system is looked for.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure) -> str:
    import matplotlib

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    text = io.StringIO()
    # Text stays text, ids do not change from run to run, and no date is written.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "nightjar", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    whole = text.getvalue()
    return whole[whole.index("<svg") :]
