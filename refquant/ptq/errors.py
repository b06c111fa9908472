"""How the error of a plan piles up: what each source contributes, what was forecast, what is certain.

Plain data for a report, in the terms of `theory`: an identity (contributions), a model (forecast), and proofs (bounds,
certificates).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arith.blas import one_blas_thread
from ..net.forward import forward
from ..net.graph import Graph
from ..net.plan import QuantPlan
from ..theory.accumulate import attribute_error
from ..theory.bounds import bound_error, measured_errors, tightness
from ..theory.certificate import coverage
from ..theory.forecast import forecast_layers
from .task import Progress, silent

__all__ = ["analyse_errors", "sqnr"]

ATTRIBUTED, FORECAST, BOUNDED, CERTIFIED = 32, 16, 4, 16
"""Images for each part."""

PROBES = 4


def sqnr(reference: NDArray[Any], other: NDArray[Any]) -> float | None:
    """Signal to quantization noise in dB; None where there is no noise (or no signal).

    >>> sqnr(np.array([10.0]), np.array([11.0]))
    20.0
    """
    signal = float(np.sum(reference.astype(np.float64) ** 2))
    noise = float(np.sum((reference.astype(np.float64) - other.astype(np.float64)) ** 2))
    return 10 * float(np.log10(signal / noise)) if noise and signal else None


def analyse_errors(
    graph: Graph,
    plan: QuantPlan,
    calibration: NDArray[Any],
    test: NDArray[Any],
    others: Mapping[str, QuantPlan],
    progress: Progress = silent,
) -> dict[str, Any]:
    """The analysis of a plan, as plain data; infinite bounds are None.

    calibration: images for contributions, forecast and bounds.  test: images whose classes are certified, also those
    of other plans, by name.  The graph has its batch norms folded.
    """
    steps = 3 + 1 + len(others)

    def done(n: int) -> None:
        progress("analysing errors", n, steps)

    with one_blas_thread():
        found: dict[str, Any] = {"contributions": _contributions(graph, plan, calibration[:ATTRIBUTED])}
        done(1)
        found["layers"] = _layers(graph, plan, calibration[:FORECAST])
        done(2)
        found["bounds"] = _bounds(graph, plan, calibration[:BOUNDED])
        done(3)
        found["certified"] = {}
        if graph.shapes[graph.output][0] > 1:
            for n, (name, one) in enumerate({"plan": plan, **others}.items(), 4):
                c = coverage(graph, one, test[:CERTIFIED])
                found["certified"][name] = {"images": c.images, "certified": c.certified, "agreeing": c.agreeing}
                done(n)
    return found


def _contributions(graph: Graph, plan: QuantPlan, x: NDArray[Any]) -> dict[str, Any]:
    a = attribute_error(graph, plan, x)
    shares = a.shares if a.mse else {}
    return {
        "images": len(x),
        "mse": a.mse,
        "interaction": a.interaction,
        "residual": a.residual,
        "sources": [
            {"source": str(s), "share": shares.get(s), "alone": a.alone[s], "all_but": a.all_but[s]}
            for s in a.contributions
        ],
        "gram": a.gram.tolist(),
    }


def _layers(graph: Graph, plan: QuantPlan, x: NDArray[Any]) -> dict[str, Any]:
    runs = [forward(graph, x, p, mode, trace=True)[1] for p, mode in ((None, "float"), (plan, "fake"))]
    forecasts = forecast_layers(graph, plan, x, rng=np.random.default_rng(0), probes=PROBES)
    return {
        name: {
            "measured_sqnr_db": sqnr(*(run[name] for run in runs)),
            "forecast_sqnr_db": forecast.sqnr_db if forecast.mse and forecast.signal else None,
        }
        for name, forecast in forecasts.items()
    }


def _bounds(graph: Graph, plan: QuantPlan, x: NDArray[Any]) -> list[dict[str, Any]]:
    rows = tightness(bound_error(graph, plan, x), measured_errors(graph, plan, x))
    kept = [row._asdict() for row in rows if row.tensor in {n.name for n in graph.linear_nodes}]
    return [{key: v if isinstance(v, str) or math.isfinite(v) else None for key, v in row.items()} for row in kept]
