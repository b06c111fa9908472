"""The plots of how errors pile up: contributions, their products, forecast and bounds; from plain results."""

import numpy as np
from matplotlib.figure import Figure

from ..ptq.study import Study
from .style import COOL, INK, WARM, panel

__all__ = ["ERROR_PLOTS"]


def _waterfall(study: Study) -> Figure:
    """Shares of the squared error at the output, each from where those before it end."""
    found = study.results["errors"]["contributions"]
    rows = [row for row in found["sources"] if row["share"] is not None]
    figure, ax = panel(1.2 + 0.2 * max(1, len(rows)))
    shares = np.array([100 * row["share"] for row in rows])
    ends = np.cumsum(shares)
    y = np.arange(len(rows))
    ax.barh(y, shares, left=ends - shares, color=[COOL if share >= 0 else WARM for share in shares])
    mse = found["mse"]
    alone = [100 * row["alone"] / mse for row in rows]
    ax.plot(alone, y, "|", color=INK, ms=9, label="this source alone, measured (adds up to nothing)")
    ax.set_yticks(y, [row["source"] for row in rows], fontsize=7)
    ax.invert_yaxis()
    ax.set_xlabel(f"% of the squared error of the output, {mse:.4g}; residual of the identity {found['residual']:.1e}")
    if rows:
        ax.legend(frameon=False, fontsize=8)
    return figure


def _gram(study: Study) -> Figure:
    """K_ij over the squared error: its diagonal is what each would err were all orthogonal."""
    found = study.results["errors"]["contributions"]
    K = np.array(found["gram"]) / (found["mse"] or 1.0)
    names = [row["source"] for row in found["sources"]]
    figure, ax = panel(1.6 + 0.22 * max(2, len(names)))
    top = float(np.abs(K).max()) if K.size else 1.0
    shown = ax.imshow(K.reshape(len(names), len(names)), cmap="RdBu_r", vmin=-(top or 1), vmax=top or 1)
    ax.grid(visible=False)
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    ax.set_yticks(range(len(names)), names, fontsize=7)
    share = found["interaction"] / (found["mse"] or 1.0)
    ax.set_title(f"off the diagonal: {100 * share:+.1f} % of the squared error", fontsize=9)
    figure.colorbar(shown, ax=ax, shrink=0.7)
    return figure


def _forecast(study: Study) -> Figure:
    layers = study.results["errors"]["layers"]
    shown = {n: v for n, v in layers.items() if None not in v.values()}
    figure, ax = panel(3.4)
    for key, style, label in (
        ("measured_sqnr_db", "o-", "measured"),
        ("forecast_sqnr_db", "x--", "forecast (a model)"),
    ):
        ax.plot(
            list(shown),
            [v[key] for v in shown.values()],
            style,
            color=COOL if label == "measured" else WARM,
            label=label,
        )
    ax.set_ylabel("SQNR at the layer's output, dB")
    ax.tick_params(axis="x", rotation=45)
    if shown:
        gap = max(abs(v["forecast_sqnr_db"] - v["measured_sqnr_db"]) for v in shown.values())
        ax.set_title(f"greatest distance {gap:.2f} dB", fontsize=9)
        ax.legend(frameon=False, fontsize=8)
    return figure


def _bounds(study: Study) -> Figure:
    found = study.results["errors"]
    rows = found["bounds"]
    figure, ax = panel(3.4)
    for key, marker, colour in (
        ("interval", "v", COOL),
        ("norm", "s", INK),
        ("affine", "^", WARM),
        ("measured", "o", "k"),
    ):
        y = [row[key] if row[key] else np.nan for row in rows]
        ax.plot([row["tensor"] for row in rows], y, f"{marker}-", ms=4, lw=0.8, color=colour, label=key)
    ax.set_yscale("log")
    ax.set_ylabel("norm of the error")
    ax.tick_params(axis="x", rotation=45)
    ax.legend(frameon=False, fontsize=8)
    said = [
        f"{name}: {row['certified']} of {row['images']} classes certified, {row['agreeing']} agree"
        for name, row in found["certified"].items()
    ]
    ax.set_title("; ".join(said), fontsize=9)
    return figure


ERROR_PLOTS = {
    "Where the error comes from": (
        _waterfall,
        "An identity: the contributions of all weights and quantizers add up to the error; those that cancel others "
        "are negative (proofs/07_accumulation.py).",
    ),
    "How contributions interact": (_gram, "Mean products of contributions; their sum is the squared error."),
    "Forecast against measured": (_forecast, "The forecast is a model: noise about known means; it is no bound."),
    "Certified bounds": (
        _bounds,
        "Proved for every image shown, floating-point roundings included (proofs/08_bounds.py); a certificate says "
        "that no rounding of codes that the rule allows changes the class (proofs/09_lossless.py).",
    ),
}
