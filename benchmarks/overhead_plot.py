"""The picture of `docs/overhead.md`: the same bytes for the same figures."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from budgets import Judged
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from peers_file import Peers
from saved import Benchmark

PARTS = (
    ("thread_us", "training thread", "#0072b2"),
    ("background_us", "other threads", "#56b4e9"),
    ("children_us", "child processes", "#e69f00"),
)
SETTINGS = {
    "svg.hashsalt": "harness",
    "svg.fonttype": "none",
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "text.color": "#202020",
    "axes.labelcolor": "#202020",
    "axes.edgecolor": "#808080",
    "xtick.color": "#202020",
    "ytick.color": "#202020",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
}
"""Over matplotlib's defaults. A background of its own keeps the picture readable on a dark page."""
OVER, WITHIN, LINE = "#d55e00", "#0072b2", "#202020"
ROW_INCHES = 0.28


def draw(steps: Sequence[Benchmark], judged: Sequence[Judged], peers: Peers | None) -> str:
    """The picture as SVG.

    Args:
        steps: Benchmarks whose value is `total_us`, one bar each.
        judged: Budgets and what was measured.
        peers: Other frameworks, for a third part.
    """
    cells = _peer_cells(peers) if peers is not None else []
    panels = [(len(steps), _draw_steps, steps), (len(judged), _draw_budgets, judged), (len(cells), _draw_peers, cells)]
    panels = [panel for panel in panels if panel[0]]
    heights = [rows + 2.5 for rows, _, _ in panels]
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **SETTINGS}):
        figure = Figure(figsize=(8.5, ROW_INCHES * sum(heights)), layout="constrained")
        all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (_, draw_panel, content) in zip(all_axes, panels, strict=True):
            draw_panel(axes, content)
            axes.invert_yaxis()
            axes.tick_params(axis="y", length=0)
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _draw_steps(axes: Any, steps: Sequence[Benchmark]) -> None:
    names = [_case(benchmark.name) for benchmark in steps]
    left = [0.0] * len(steps)
    for figure, label, colour in PARTS:
        widths = [benchmark.interval(figure).mid for benchmark in steps]
        axes.barh(names, widths, left=left, color=colour, label=label, height=0.6)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    totals = [benchmark.interval("total_us") for benchmark in steps]
    _whiskers(axes, names, [(total.low, total.mid, total.high) for total in totals])
    axes.set_title(
        "Added to a step of the tiny MLP, µs CPU (line: median of the sum, 95 % interval)", loc="left", fontsize=9
    )
    axes.legend(frameon=False, loc="best")


def _draw_budgets(axes: Any, judged: Sequence[Judged]) -> None:
    names = [one.budget.what for one in judged]
    shares = [
        tuple(100 * bound / one.limit for bound in (one.interval.low, one.interval.mid, one.interval.high))
        for one in judged
    ]
    colours = [OVER if one.is_over else WITHIN for one in judged]
    axes.barh(names, [mid for _, mid, _ in shares], color=colours, height=0.6)
    _whiskers(axes, names, shares)
    axes.axvline(100, color=LINE, linewidth=1)
    axes.set_title("Measured in percent of the budget", loc="left", fontsize=9)


def _draw_peers(axes: Any, cells: Sequence[tuple[str, float, float, float]]) -> None:
    names = [name for name, *_ in cells]
    axes.barh(names, [mid for _, _, mid, _ in cells], color=WITHIN, height=0.6)
    _whiskers(axes, names, [(low, mid, high) for _, low, mid, high in cells])
    axes.set_title("Other frameworks, all options off: added to a step of the tiny MLP, µs CPU", loc="left", fontsize=9)


def _peer_cells(peers: Peers) -> list[tuple[str, float, float, float]]:
    cells = []
    for framework in peers.frameworks:
        row = peers.row(framework.name, "tiny", "off")
        total = row.figures.get("total_us") if row is not None else None
        if total is not None:
            low, high = (total.mid if bound is None else bound for bound in (total.low, total.high))
            cells.append((framework.title, low, total.mid, high))
    return cells


def _whiskers(axes: Any, names: Sequence[str], bounds: Sequence[tuple[float, ...]]) -> None:
    """Intervals as lines; one without bounds has none."""
    for name, (low, mid, high) in zip(names, bounds, strict=True):
        if math.isfinite(low) and math.isfinite(high):
            axes.plot([low, high], [name, name], color=LINE, linewidth=1)
        axes.plot([mid], [name], color=LINE, marker="|", markersize=8)


def _case(name: str) -> str:
    """What is between the brackets, or the test's name."""
    _, bracket, case = name.partition("[")
    return case.removesuffix("]") if bracket else name.rpartition("::")[2]
