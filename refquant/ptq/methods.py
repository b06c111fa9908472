"""Post-training quantization of a whole network: a table of methods behind one door."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arith.blas import one_blas_thread
from ..errors import ArgumentError, complaint
from ..net.fold import fold_batch_norm
from ..net.forward import forward
from ..net.graph import Graph
from ..net.plan import ActivationQuantizer, QuantPlan
from ..quant.granularity import Granularity, PerChannel
from ..quant.integer_spec import IntegerSpec
from ..quant.profiles import profile as profile_of
from ..quant.spec import QuantSpec
from .integer import integer_plan, weight_spec
from .multiterms import Axis, Progress, build_axis
from .observe import activation_quantizers

__all__ = ["METHODS", "Calibrated", "calibrate", "quantize_network"]

METHODS: dict[str, tuple[str, str]] = {  # name -> encoding of terms: rounding to nearest, directed rounding
    "certified": ("joint", "greedy"),
    "absmax": ("greedy-absmax", "greedy-absmax"),
}
"""Methods: `certified` (scales of least squared error, terms joint), `absmax` (largest magnitude / qmax)."""

CALIBRATION_IMAGES = 256
"""How many calibration images are used: ranges, second moments and sensitivities come from the first of them."""


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A folded network with what its calibration images said."""

    graph: Graph
    axis: Axis
    images: NDArray[Any]
    trace: Mapping[str, NDArray[np.float32]]


def calibrate(
    graph: Graph,
    calibration: ArrayLike,
    *,
    method: str,
    bits: tuple[int, int | None],
    granularity: Granularity,
    profile: str,
    observer: str = "minmax",
    progress: Progress | None = None,
) -> Calibrated:
    """Fold, observe, and encode every weight with every number of terms.

    Raises ArgumentError for an unknown method or observer and for no calibration images.
    """
    images = _checked(calibration, method, bits)
    spec = weight_spec(profile, bits[0], granularity)
    folded = fold_batch_norm(graph)
    with one_blas_thread():
        _, trace = forward(folded, images, trace=True)
        activations: Mapping[str, ActivationQuantizer] = {}
        if bits[1] is not None:
            activations = activation_quantizers(
                folded, trace, profile_of(profile, bits=bits[1], signed=False), observer
            )
        axis = build_axis(folded, images, trace, activations, spec, _encoding(method, spec), progress)
    return Calibrated(folded, axis, images, trace)


def _checked(calibration: ArrayLike, method: str, bits: tuple[int, int | None]) -> NDArray[Any]:
    """The calibration images that are used, once the arguments are sound."""
    if method not in METHODS:
        raise ArgumentError(complaint(f"method={method!r}", f"one of {', '.join(METHODS)}", "quantize_network"))
    for name, got, most in (("weight bits", bits[0], 8), ("activation bits", bits[1], 16)):
        if got is not None and not (type(got) is int and 2 <= got <= most):
            raise ArgumentError(complaint(f"{name} {got}", f"an integer from 2 to {most}", "quantize_network"))
    images = np.asarray(calibration)[:CALIBRATION_IMAGES]
    if not len(images):
        raise ArgumentError(complaint("no calibration images", "at least one", "quantize_network"))
    return images


def _encoding(method: str, spec: QuantSpec) -> str:
    return METHODS[method][0 if spec.rounding.startswith("half_") else 1]


def quantize_network(
    graph: Graph,
    calibration: ArrayLike,
    *,
    method: str = "certified",
    bits: tuple[int, int | None] = (4, 8),
    granularity: Granularity = PerChannel(0),  # noqa: B008 (frozen, without state)
    profile: str = "seed-nearest@1",
    budget: float | None = None,
    seed: int = 0,
    integer: IntegerSpec | None = None,
) -> QuantPlan:
    """A plan for the network: weights as sums of low-bit terms, activations with zero points.

    calibration: images in the units of the graph's input entry; labels are not used.  bits: of weights and
    activations (None leaves activations float).  profile: the semantics of activations; weights, which are
    encoded offline, take its grid and rounding with an exact quotient.  budget: bit operations relative to one
    term throughout, at least 1; None means one term a weight.  seed: for methods that draw random numbers; those
    here draw none.
    integer: the plan is for an integer-only network of these semantics (`forward(mode="integer")`): every
    tensor is quantized, one term a weight.

    Raises ArgumentError for unknown names, no images, a budget below 1, and for an integer-only network with
    a budget or with float activations.

    >>> from refquant.zoo import load_data, load_network
    >>> plan = quantize_network(load_network("mlp"), load_data("fashion-mnist").calibration.x[:8], budget=1.5)
    >>> sorted(plan.weights), plan.weights["gemm3"].specs[0].bits
    (['gemm1', 'gemm2', 'gemm3'], 4)
    """
    if budget is not None and not (np.isfinite(budget) and budget >= 1):
        raise ArgumentError(complaint(f"budget={budget}", "at least 1 (one term throughout)", "quantize_network"))
    if integer is not None:
        images = _checked(calibration, method, bits)
        if budget is not None or bits[1] is None:
            got = f"budget={budget}, activation bits {bits[1]}"
            raise ArgumentError(complaint(got, "None, and 2 to 16", "quantize_network(integer=...)"))
        return integer_plan(
            graph,
            images,
            encoding=_encoding(method, weight_spec(profile, bits[0], granularity)),
            bits=(bits[0], bits[1]),
            granularity=granularity,
            profile=profile,
            integer=integer,
        )
    known = calibrate(graph, calibration, method=method, bits=bits, granularity=granularity, profile=profile)
    return known.axis.plan(known.axis.allocate(budget or 1.0).value)
