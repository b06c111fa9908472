"""The main job: one network walked along the complexity axis, from one low-bit term to lossless weights.

Protocol: batch norms are folded; ranges, second moments and sensitivities come from calibration images of
the training split; every choice is made from these alone.  Each point is then measured once on held-out
images.  F is held-out top-1 with a Wilson interval, P the bit operations and the weight bits.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from ..arith.blas import one_blas_thread
from ..errors import ArgumentError, complaint, one_of
from ..net.forward import forward
from ..net.graph import Graph
from ..net.plan import QuantPlan
from ..quant.granularity import Granularity
from .complexity import FLOAT_BITS, complexity, uniform_complexity
from .errors import analyse_errors, sqnr
from .methods import ENCODINGS, METHODS, Calibrated, calibrate, run_method
from .resume import resumable
from .task import Progress, make_task

__all__ = ["Images", "Study", "run_study", "sqnr", "wilson"]

MEAN_TERMS = (1.0, 1.25, 1.5, 2.0, 3.0)
"""The stations between single-term and lossless: mean numbers of terms, by bit operations."""

LAYER_IMAGES = 64


@dataclass(frozen=True, eq=False)
class Images:
    """Calibration and held-out images in the units of the graph's input entry; labels or None."""

    calibration: NDArray[Any]
    test: NDArray[Any]
    test_labels: NDArray[Any] | None
    calibration_labels: NDArray[Any] | None = None


@dataclass(frozen=True, eq=False)
class Study:
    """The results as plain data, and what a report draws from."""

    results: dict[str, Any]
    plan: QuantPlan
    calibrated: Calibrated


def wilson(right: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval for a proportion (Wilson 1927).

    >>> [round(v, 4) for v in wilson(9, 10)]
    [0.5958, 0.9821]
    """
    z2 = float(ndtri((1 + confidence) / 2)) ** 2
    middle = (right + z2 / 2) / (count + z2)
    half = (z2 * (right * (count - right) / count + z2 / 4)) ** 0.5 / (count + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def _quality(logits: NDArray[Any], reference: NDArray[Any], labels: NDArray[Any] | None) -> dict[str, Any]:
    classes, count = logits.argmax(axis=1), len(logits)
    quality: dict[str, Any] = {
        "output_sqnr_db": sqnr(reference, logits),
        "logits_identical": bool(np.array_equal(logits, reference)),
        "same_class_as_float": float(np.mean(classes == reference.argmax(axis=1))),
    }
    if labels is not None:
        right = int(np.sum(classes == labels))
        quality |= {"top1": right / count, "top1_interval_95": list(wilson(right, count))}
    return quality


def run_study(
    graph: Graph,
    images: Images,
    *,
    bits: tuple[int, int | None] = (3, 8),
    budget: float = 1.5,
    granularity: Granularity,
    profile: str = "seed-nearest@1",
    method: str = "certified",
    observer: str = "minmax",
    resume: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Study:
    """Quantize along the complexity axis and measure every point.

    budget: the point whose plan is returned, bit operations relative to one term, at least 1; it joins the stations.
    Methods that encode each weight alone are measured at all `MEAN_TERMS`; the others, which run anew for every
    budget and may take minutes, at one term and at the budget.  resume: a folder where methods of `resume.STATES`
    keep what they have done, and from where they go on.  progress is called with (what, done, total).  Results
    hold no times and no paths, so that two runs are equal.

    Raises ArgumentError for arguments out of range, for no held-out images, and for `resume` with a method that keeps
    nothing; FileError for a state that belongs to other arguments.
    """
    one_of(method, METHODS, "method", "study")
    if resume is not None:
        resumable(method, "study")
    if not (np.isfinite(budget) and budget >= 1):
        raise ArgumentError(complaint(f"budget={budget}", "at least 1 (one term throughout)", "study"))
    if not graph.linear_nodes or len(graph.shapes[graph.output]) != 1:
        got = f"{len(graph.linear_nodes)} Conv and Gemm nodes, an output of shape {graph.shapes[graph.output]}"
        raise ArgumentError(complaint(got, "at least one such node, one number a class", f"study of {graph.name}"))
    if not len(images.test):
        raise ArgumentError(complaint("no held-out images", "at least one", "study"))
    if images.test_labels is not None and len(images.test_labels) != len(images.test):
        got = f"{len(images.test_labels)} labels for {len(images.test)} images"
        raise ArgumentError(complaint(got, "one a image", "study"))

    def report(what: str, done: int, total: int) -> None:
        if progress is not None:
            progress(what, done, total)

    with one_blas_thread():
        known = calibrate(
            graph,
            images.calibration,
            method=method if method in ENCODINGS else "certified",
            bits=bits,
            granularity=granularity,
            profile=profile,
            observer=observer,
            budget=budget,
            progress=progress,
        )
        task = make_task(
            graph,
            images.calibration,
            labels=images.calibration_labels,
            bits=bits,
            granularity=granularity,
            profile=profile,
            observer=observer,
            progress=report,
        )
        reference = forward(known.graph, images.test)
        stations = sorted({*(MEAN_TERMS if method in ENCODINGS else (1.0,)), float(budget)})
        points: list[dict[str, Any]] = []
        chosen = QuantPlan()
        single = complexity(known.graph, known.axis.plan(np.ones(len(known.axis.errors), np.int64)))
        scales = sum(e[0].counts.size for e in known.axis.encodings.values())
        eight = uniform_complexity(known.graph, 8, 8 if bits[1] is not None else FLOAT_BITS, scales)
        for i, mean_terms in enumerate((*stations, None)):
            solution = None if mean_terms is None or method not in ENCODINGS else known.axis.allocate(mean_terms)
            if mean_terms is None:
                plan = known.axis.lossless()
            elif solution is not None:
                plan = known.axis.plan(solution.value)
            else:
                anew = task.changed(budget=mean_terms if mean_terms > 1 else None, rng=np.random.default_rng(0))
                plan = run_method(method, anew, resume)
            if mean_terms == float(budget):
                chosen = plan
            P = complexity(known.graph, plan)
            logits = forward(known.graph, images.test, plan, mode="fake")
            exact = all(
                np.array_equal(plan.weights[n.name].decode(), known.graph.param(n, "weight"))
                for n in known.graph.linear_nodes
            )
            points.append(
                {
                    "budget": mean_terms,
                    "mean_terms": P.bit_operations / single.bit_operations,
                    "bit_operations": P.bit_operations,
                    "weight_bits": P.weight_bits,
                    "bit_operations_vs_single": P.bit_operations / single.bit_operations,
                    "weight_bits_vs_single": P.weight_bits / single.weight_bits,
                    "bit_operations_vs_8_bit": P.bit_operations / eight.bit_operations,
                    "weight_bits_vs_8_bit": P.weight_bits / eight.weight_bits,
                    "allocation_gap": None if solution is None else float(solution.gap),
                    "allocation_certified": None if solution is None else solution.certified,
                    "weights_bit_exact": bool(exact),
                    "terms": {name: np.bincount(w.counts.ravel())[1:].tolist() for name, w in plan.weights.items()},
                    **_quality(logits, reference, images.test_labels),
                }
            )
            report("measuring held-out points", i + 1, len(stations) + 1)
        layers = _layer_sqnr(known, chosen)
        lossless = {"lossless weights": known.axis.lossless()}
        errors = analyse_errors(known.graph, chosen, known.images, images.test, lossless, report)
    results = {
        "network": graph.name,
        "profile": profile,
        "method": method,
        "weight_bits": bits[0],
        "activation_bits": bits[1],
        "granularity": repr(granularity),
        "budget": float(budget),
        "images": len(images.test),
        "calibration_images": len(known.images if method in ENCODINGS else task.images),
        "float": _quality(reference, reference, images.test_labels),
        "layer_sqnr_db": layers,
        "errors": errors,
        "points": points,
    }
    return Study(results, chosen, known)


def _layer_sqnr(known: Calibrated, plan: QuantPlan) -> dict[str, float | None]:
    """SQNR at every layer's output with the whole plan at work, on calibration images."""
    images = known.images[:LAYER_IMAGES]
    _, quantized = forward(known.graph, images, plan, mode="fake", trace=True)
    return {n.name: sqnr(known.trace[n.name][: len(images)], quantized[n.name]) for n in known.graph.linear_nodes}
