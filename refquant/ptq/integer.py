"""From a trained network to a plan for an integer-only one: every tensor and every weight quantized, one term each."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arith.blas import one_blas_thread
from ..errors import one_of
from ..net.edges import MONOTONE
from ..net.fold import fold_batch_norm
from ..net.forward import forward
from ..net.graph import Graph
from ..net.plan import ActivationQuantizer, QuantPlan
from ..quant.arguments import reals
from ..quant.granularity import Granularity
from ..quant.integer_spec import IntegerSpec
from ..quant.profiles import profile as profile_of
from ..quant.ranges import range_parameters
from ..quant.spec import QuantSpec
from ..solve.terms import encode_terms
from .observe import RANGES

__all__ = ["integer_plan", "weight_spec"]


def weight_spec(profile: str, bits: int, granularity: Granularity) -> QuantSpec:
    """The grid and rounding of a profile for weights, which are encoded offline: the quotient is exact, no zero point.

    >>> from ..quant.granularity import PerTensor
    >>> weight_spec("onnx@21", 4, PerTensor()).quotient
    'exact'
    """
    spec = profile_of(profile, bits=bits, signed=True)
    return replace(spec, granularity=granularity, quotient="exact", zero_point_order="after")


SELECTING = ("MaxPool", "Flatten")
"""Ops whose output holds values of their input: it keeps the input's quantizer, so that codes pass through."""


def _quantizers(
    graph: Graph, trace: Mapping[str, NDArray[np.float32]], spec: QuantSpec, observer: str
) -> dict[str, ActivationQuantizer]:
    """A quantizer for every tensor of a folded graph, except those that one Relu or its like reads alone."""
    made: dict[str, ActivationQuantizer] = {}
    selected = {node.name: node.inputs[0] for node in graph.nodes if node.op in SELECTING}
    for tensor in graph.shapes:
        readers = graph.readers(tensor)
        if selected.get(tensor) in made:
            made[tensor] = made[selected[tensor]]
        elif not (len(readers) == 1 and readers[0].op in MONOTONE[:2] and tensor != graph.output):
            lo, hi = RANGES[observer](reals(trace[tensor]))
            made[tensor] = ActivationQuantizer(spec, *range_parameters(lo, hi, spec=spec, rule="affine"))
    return made


def integer_plan(
    graph: Graph,
    calibration: ArrayLike,
    *,
    encoding: str,
    bits: tuple[int, int],
    granularity: Granularity,
    profile: str,
    integer: IntegerSpec,
    observer: str = "minmax",
) -> QuantPlan:
    """A plan whose `integer` is given: activations with zero points, unsigned; weights signed, one term each.

    encoding: how weight scales are found, a method of `encode_terms`.  Ranges come from the calibration images.

    Raises ArgumentError for an unknown observer.
    """
    one_of(observer, RANGES, "observer", "integer_plan")
    folded = fold_batch_norm(graph)
    grid = weight_spec(profile, bits[0], granularity)
    with one_blas_thread():
        _, trace = forward(folded, calibration, trace=True)
        weights = {
            node.name: encode_terms(folded.param(node, "weight"), spec=grid, terms=1, method=encoding)
            for node in folded.linear_nodes
        }
    activations = _quantizers(folded, trace, profile_of(profile, bits=bits[1], signed=False), observer)
    return QuantPlan(weights, activations, integer)
