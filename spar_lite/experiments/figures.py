"""Figures: curves with bands, as SVG and PNG, for light and for dark pages.

Nothing is said by colour alone: lines differ in dashes and markers too, and are named at their
right ends. Knows nothing of runs; matplotlib (the extra ``figures``) is loaded when one is drawn.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spar_lite.errors import SparError

# M. Okabe, K. Ito, "Color Universal Design", 2008: those that stand out on the ground.
LIGHT = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
DARK = "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#ffffff"
THEMES = {"light": ("#ffffff", "#222222", LIGHT), "dark": ("#16181d", "#e6e6e6", DARK)}
"""By name: ground, text, and the lines' colours."""

DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = "os^DvPX"
INSTALL = "Figures want matplotlib. Install it: pip install 'spar-lite[figures]'"

PANEL_WIDTH, PANEL_HEIGHT, LINE_HEIGHT = 4.8, 3.6, 0.19
"""Inches: of a panel with its labels, and of a line of small text."""


class Line(NamedTuple):
    """One named curve; ``low`` and ``high`` are its band. NaN leaves a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


class Panel(NamedTuple):
    """One pair of axes and its curves; without ``y_range`` the figures decide."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    y_range: tuple[float, float] | None = None


def draw(stem: Path, panels: Sequence[Panel], caption: str) -> list[Path]:
    """Draw panels side by side above a caption; it should say n, and what the bands are.

    Writes STEM-light.svg, STEM-light.png, and the same for dark; returns their paths.

    Raises:
        SparError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure  # without pyplot it wants no window
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise SparError(INSTALL) from None
    stem.parent.mkdir(parents=True, exist_ok=True)
    text = textwrap.fill(caption, 70 * len(panels))
    wide, high = PANEL_WIDTH * len(panels), PANEL_HEIGHT + LINE_HEIGHT * (text.count("\n") + 2)
    # A name with two $ is no formula; the same figures give the same bytes.
    plain = {"text.parse_math": False, "svg.hashsalt": "spar-lite", "svg.fonttype": "none"}
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    written = []
    for theme, (ground, ink, colours) in THEMES.items():
        with mpl.rc_context({**plain, "font.size": 9, **dict.fromkeys(inked, ink)}):
            part = PANEL_HEIGHT / high
            layout = ConstrainedLayoutEngine(rect=(0, 1 - part, 1, part))
            figure = Figure(figsize=(wide, high), dpi=150, facecolor=ground, layout=layout)
            every = figure.subplots(1, len(panels), squeeze=False)[0]
            for panel, axes in zip(panels, every, strict=True):
                axes.set_facecolor(ground)
                _draw_panel(axes, panel, colours)
            figure.text(0.01, 0.06 / high, text, fontsize=8, va="bottom", linespacing=1.4)
            for kind, noted in (("svg", {"Date": None}), ("png", {"Software": None})):
                written.append(stem.with_name(f"{stem.name}-{theme}.{kind}"))
                figure.savefig(written[-1], metadata=noted)
    return written


def _draw_panel(axes: Any, panel: Panel, colours: Sequence[str]) -> None:
    axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold")
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.2, linewidth=0.6)
    ends = []
    for number, line in enumerate(panel.lines):
        colour = colours[number % len(colours)]
        dashes, marker = DASHES[number % len(DASHES)], MARKERS[number % len(MARKERS)]
        axes.plot(line.x, line.y, color=colour, ls=dashes, marker=marker, ms=4.5, lw=1.6)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.13, lw=0)
            if len(line.x) == 1:  # a band of one point has no width
                axes.vlines(line.x, line.low, line.high, color=colour, lw=1)
        known = [(x, y) for x, y in zip(line.x, line.y, strict=True) if not math.isnan(x + y)]
        ends += [(line.name, max(known), colour)] if known else []
    if panel.y_range:
        axes.set_ylim(panel.y_range)
    every_x = [x for line in panel.lines for x in line.x]
    if every_x and all(float(x).is_integer() for x in every_x):
        axes.xaxis.get_major_locator().set_params(integer=True)
    if len(set(every_x)) == 1:
        axes.set_xticks(every_x[:1])
    if max(every_x, default=0) >= 1000:
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.get_major_locator().set_params(nbins=5)
    _name_lines(axes, ends)


def _name_lines(axes: Any, ends: Sequence[tuple[str, tuple[float, float], str]]) -> None:
    """Write each name right of the axes at its line's height, or as near as the others let it."""
    low, high = axes.get_ylim()
    gap = 1.15 * LINE_HEIGHT / PANEL_HEIGHT * (high - low)
    ends = sorted(ends, key=lambda end: end[1][1])
    heights: list[float] = []
    for _, (_, y), _ in ends:
        heights.append(max(y, heights[-1] + gap) if heights else y)
    pushed = sum(height - y for height, (_, (_, y), _) in zip(heights, ends, strict=True))
    for height, (name, end, colour) in zip(heights, ends, strict=True):
        place = (1.05, (height - pushed / len(ends) - low) / (high - low))
        lead = {"arrowstyle": "-", "color": colour, "lw": 0.8, "relpos": (0, 0.5), "shrinkB": 4}
        axes.annotate(
            name, end, place, textcoords="axes fraction", va="center", fontsize=8, arrowprops=lead
        ).set_annotation_clip(False)
