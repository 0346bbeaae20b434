"""Figures: the files that are written, and that every line is named in them."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from spar_lite.errors import SparError
from spar_lite.experiments.figures import Line, Panel, draw

LINES = [
    Line("up", [0, 1, 2], [20, 25, 30], [15, 20, 25], [25, 30, 35]),
    Line("a $name$_that is no formula", [0, 1, 2], [20, math.nan, 30]),
    Line("one point", [0], [21.0], [20.0], [22.0]),
]


def test_each_theme_is_an_svg_and_a_png_with_every_name_and_the_caption(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    lines = [*LINES, Line("without a figure", [0], [math.nan])]
    panels = [Panel("Left", "iteration", "%", lines), Panel("Right", "tokens", "%", LINES, (0, 99))]
    written = draw(tmp_path / "new" / "figure", panels, "Bands: 95 % intervals, n=200.")
    assert [path.name for path in written] == [
        f"figure-{theme}.{kind}" for theme in ("light", "dark") for kind in ("svg", "png")
    ]
    for path in written[::2]:
        text = path.read_text()
        assert all(text.count(f">{line.name}<") == 2 for line in LINES)
        assert ">Bands: 95 % intervals, n=200.<" in text and ">without a figure<" not in text
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1::2])
    assert written[0].read_text() != written[2].read_text()


def test_the_same_figures_give_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    once, again = (
        [path.read_bytes() for path in draw(tmp_path / name, [Panel("A", "x", "y", LINES)], "n=3")]
        for name in ("once", "again")
    )
    assert once == again


def test_without_matplotlib_the_command_that_brings_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SparError, match=r"pip install 'spar-lite\[figures\]'"):
        draw(tmp_path / "figure", [Panel("A", "x", "y", LINES)], "n=3")
    assert not list(tmp_path.iterdir())
