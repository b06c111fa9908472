"""How all plots look, and how a figure becomes SVG."""

import io
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["COOL", "INK", "STYLE", "WARM", "panel", "svg"]

INK, WARM, COOL = "#24292f", "#c2410c", "#1d4ed8"
STYLE: Any = {
    "svg.hashsalt": "refquant",
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}


def svg(figure: Figure) -> str:
    """The figure as an SVG element, without dates, so that it is reproducible."""
    out = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    text = out.getvalue()
    return text[text.index("<svg") :]


def panel(height: float = 3.6) -> tuple[Figure, Axes]:
    """A figure of the page's width with one pair of axes."""
    figure = Figure(figsize=(7.2, height))
    return figure, figure.subplots()
