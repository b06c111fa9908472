"""From a trained network to a plan for an integer-only one: every tensor and every weight quantized, one term each."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..arith.blas import one_blas_thread
from ..net.edges import MONOTONE
from ..net.graph import Graph
from ..net.plan import ActivationQuantizer, QuantPlan
from ..quant.arguments import reals
from ..quant.integer_spec import IntegerSpec
from ..quant.ranges import range_parameters
from ..quant.spec import QuantSpec
from ..solve.terms import encode_terms
from .observe import RANGES
from .task import Task

__all__ = ["integer_plan"]


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


def integer_plan(task: Task, *, encoding: str, integer: IntegerSpec) -> QuantPlan:
    """A plan whose `integer` is given: activations with zero points, unsigned; weights signed, one term each.

    encoding: how weight scales are found, a method of `encode_terms`.  Ranges come from the calibration images.
    """
    spec = task.activation_spec
    assert spec is not None  # quantize_network has looked
    with one_blas_thread():
        weights = {
            node.name: encode_terms(task.weight(node), spec=task.weight_spec, terms=1, method=encoding)
            for node in task.graph.linear_nodes
        }
    return QuantPlan(weights, _quantizers(task.graph, task.trace, spec, task.observer), integer)
