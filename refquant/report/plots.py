"""The plots of a study, each an SVG string that is the same for the same data."""

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..ptq.study import Study
from ..quant.granularity import PerTensor
from ..solve.scale import solve_scale, squared_error
from .error_plots import ERROR_PLOTS
from .style import COOL, INK, STYLE, WARM, panel, svg

__all__ = ["PLOTS", "draw", "quality_figure"]


def quality_figure(results: dict[str, Any]) -> Figure:
    """Held-out top-1 (or agreement with the float network) against bit operations."""
    with mpl.rc_context(STYLE):
        figure, ax = panel()
        points = results["points"]
        x = [p["bit_operations_vs_8_bit"] for p in points]
        key = "top1" if "top1" in points[0] else "same_class_as_float"
        y = np.array([100 * p[key] for p in points])
        if key == "top1":
            low, high = (np.array([100 * p["top1_interval_95"][i] for p in points]) for i in (0, 1))
            ax.fill_between(x, low, high, color=COOL, alpha=0.12, label="95 % interval")
            ax.axhline(100 * results["float"]["top1"], color=INK, lw=1, ls="--", label="float network")
        ax.plot(x, y, "o-", color=COOL, label="held-out top-1" if key == "top1" else "same class as float")
        for p, px, py in zip(points, x, y, strict=True):
            name = "lossless weights" if p["weights_bit_exact"] else f"{p['mean_terms']:.2f} terms"
            ax.annotate(name, (px, py), xytext=(4, -12), textcoords="offset points", fontsize=8)
        ax.set_xscale("log", base=2)
        ticks = [2.0**k for k in range(int(np.floor(np.log2(min(x)))), int(np.ceil(np.log2(max(x)))) + 1)]
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.set_xlabel("bit operations, relative to 8-bit weights and activations")
        ax.set_ylabel("%")
        ax.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _quality(study: Study) -> Figure:
    return quality_figure(study.results)


def _layers(study: Study) -> Figure:
    figure, ax = panel()
    values = study.results["layer_sqnr_db"]
    shown = {name: v for name, v in values.items() if v is not None}
    ax.bar(list(shown), list(shown.values()), color=COOL)
    ax.set_ylabel("SQNR at the layer's output, dB")
    ax.tick_params(axis="x", rotation=45)
    missing = [name for name in values if name not in shown]
    if missing:
        ax.set_title(f"no error at all: {', '.join(missing)}", fontsize=9)
    return figure


def _worst_layer(study: Study) -> str:
    values = {n: v for n, v in study.results["layer_sqnr_db"].items() if v is not None}
    return min(values, key=lambda n: values[n]) if values else next(iter(study.plan.weights))


def _worst_row(study: Study) -> tuple[str, int, NDArray[np.float64], Any]:
    """The weights that share one scale and err most with one term, in the layer of least SQNR."""
    name = _worst_layer(study)
    first = study.calibrated.axis.encodings[name][0]
    weight = study.calibrated.graph.param(study.calibrated.graph.node(name), "weight").astype(np.float64)
    rows = first.specs[0].granularity.rows(weight)
    errors = first.specs[0].granularity.rows((first.decode(np.float64) - weight) ** 2).sum(axis=1)
    i = int(errors.argmax())
    return name, i, rows[i], first


def _histogram(study: Study) -> Figure:
    name, i, row, first = _worst_row(study)
    scale = float(first.scales[0].ravel()[i])
    spec = first.specs[0]
    figure, ax = panel()
    ax.hist(row, bins=min(80, max(10, len(row) // 4)), color=COOL, alpha=0.6)
    for code in range(spec.qmin, spec.qmax + 1) if spec.bits <= 6 else ():
        ax.axvline(code * scale, color=WARM, lw=0.8)
    ax.set_title(f"{name}, row {i}: weights and the grid of one term, scale {scale:.6g}", fontsize=9)
    ax.set_xlabel("weight")
    ax.set_ylabel("count")
    return figure


def _sse(study: Study) -> Figure:
    name, i, row, first = _worst_row(study)
    spec = first.specs[0]
    tensor = type(spec)(spec.bits, spec.signed, spec.narrow, spec.rounding, granularity=PerTensor())
    best = solve_scale(row, spec=tensor)
    top = float(np.abs(row).max()) or 1.0
    alpha = np.linspace(0.15, 1.6, 1500) * max(float(best.value), 1e-30)
    tiled = np.broadcast_to(row, (len(alpha), len(row)))
    sse = squared_error(tiled, np.ones_like(tiled), alpha, tensor)
    inner = np.flatnonzero((sse[1:-1] < sse[:-2]) & (sse[1:-1] <= sse[2:])) + 1
    figure, ax = panel()
    ax.plot(alpha, sse, color=INK, lw=1, label="SSE(alpha)")
    ax.plot(alpha[inner], sse[inner], "o", ms=4, color=COOL, label=f"{len(inner)} local minima on this grid")
    word = "certified optimum" if best.certified else "best found"
    ax.plot(float(best.value), float(best.objective), "*", ms=12, color=WARM, label=f"{word} {float(best.value):.6g}")
    absmax = top / max(spec.qmax, 1)
    if alpha[0] <= absmax <= alpha[-1]:
        ax.axvline(absmax, color=WARM, lw=0.8, ls=":", label="largest magnitude / qmax")
    ax.set_title(f"{name}, row {i}", fontsize=9)
    ax.set_xlabel("alpha")
    ax.set_ylabel("squared error")
    ax.legend(frameon=False, fontsize=8)
    return figure


def _terms(study: Study) -> Figure:
    figure, ax = panel()
    counts = {name: w.counts.ravel() for name, w in study.plan.weights.items()}
    most = max(int(c.max()) for c in counts.values())
    bottom = np.zeros(len(counts))
    for t in range(1, most + 1):
        share = np.array([100 * np.mean(c == t) for c in counts.values()])
        ax.bar(list(counts), share, bottom=bottom, color=mpl.colormaps["viridis"](t / (most + 1)), label=f"{t} terms")
        bottom += share
    ax.set_ylabel("% of scales")
    ax.tick_params(axis="x", rotation=45)
    ax.legend(frameon=False, fontsize=8, bbox_to_anchor=(1, 1))
    return figure


PLOTS = {
    "Quality against complexity": (
        _quality,
        "Every point is measured once on held-out images; all choices were made on calibration images.",
    ),
    "Error at every layer": (_layers, "With the whole plan at the budget at work, on calibration images."),
    "Weights and their grid": (_histogram, "The row that errs most with one term, in the layer of least SQNR."),
    "The squared error of that row as a function of its scale": (
        _sse,
        "Searches on grids and unimodal methods stop in one of the local minima; the sweep visits every breakpoint.",
    ),
    "Terms per channel": (_terms, "The counts that the budget bought, by layer."),
    **ERROR_PLOTS,
}


def draw(study: Study) -> dict[str, tuple[str, str]]:
    """Title -> (SVG, caption) of every plot."""
    drawn = {}
    for title, (make, caption) in PLOTS.items():
        with mpl.rc_context(STYLE):
            drawn[title] = (svg(make(study)), caption)
    return drawn
