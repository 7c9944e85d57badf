"""Plots, the same look for every case; SVG without date or random ids, so that a diff shows only numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Summary = Mapping[str, float]
# Okabe and Ito's palette: told apart by colour-blind readers as well.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442", "#000000")


def take_panels(count: int, *, widths: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels side by side."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, count, width_ratios=widths))
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.title.set_size(10)
    return figure, panels


def draw_shares(panel: Axes, quantiles: Mapping[str, Sequence[Summary]]) -> None:
    """Draw which share had been answered when; the band is the spread of the rounds."""
    for colour, (name, points) in zip(_COLOURS, quantiles.items(), strict=False):
        share = [100 * number / max(1, len(points) - 1) for number in range(len(points))]
        panel.plot([point["median"] for point in points], share, color=colour, label=name)
        panel.fill_betweenx(
            share,
            [point["low"] for point in points],
            [point["high"] for point in points],
            color=colour,
            alpha=0.25,
            linewidth=0,
        )
    panel.set_xlim(left=0)
    panel.set_ylabel("% of requests")
    panel.legend(frameon=False, fontsize=8, loc="lower right")


def draw_bars(panel: Axes, summaries: Mapping[str, Summary | None]) -> None:
    """Draw medians with whiskers from the lowest to the highest round."""
    for place, (colour, (name, value)) in enumerate(zip(_COLOURS, summaries.items(), strict=False)):
        if value is None:
            continue
        whiskers = [[value["median"] - value["low"]], [value["high"] - value["median"]]]
        panel.bar(place, value["median"], color=colour, label=name, yerr=whiskers, capsize=4)
    panel.set_xticks(range(len(summaries)), [name.replace(", ", ",\n") for name in summaries], fontsize=8)


def draw_lines(
    panel: Axes, series: Mapping[str, Sequence[tuple[float, Summary]]], *, factor: float = 1.0
) -> None:
    """Draw medians over what was varied, on a logarithmic axis; the band is the spread of the rounds."""
    for colour, (name, points) in zip(_COLOURS, series.items(), strict=False):
        places = [place for place, _ in points]
        panel.plot(
            places,
            [factor * point["median"] for _, point in points],
            color=colour,
            label=name,
            marker="o",
            markersize=3.5,
        )
        panel.fill_between(
            places,
            [factor * point["low"] for _, point in points],
            [factor * point["high"] for _, point in points],
            color=colour,
            alpha=0.25,
            linewidth=0,
        )
    panel.set_xscale("log")
    ticks = sorted({place for points in series.values() for place, _ in points})
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()


def save(figure: Figure, path: Path) -> None:
    """Write an SVG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "freeloop", "svg.fonttype": "path"}):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
