"""P, the complexity of a quantized network (proofs and README: bit operations and weight bits)."""

from typing import NamedTuple

import numpy as np

from ..errors import ArgumentError, complaint
from ..net.edges import edges_of
from ..net.graph import Graph, macs
from ..net.plan import QuantPlan
from ..net.products import terms_needed

__all__ = ["FLOAT_BITS", "Complexity", "complexity", "low_bit_macs", "uniform_complexity"]

FLOAT_BITS = 32
"""The width that a tensor which stays float is counted with."""


class Complexity(NamedTuple):
    """Bit operations an image (MACs x weight bits x activation bits, each term counted), and weight storage."""

    bit_operations: int
    weight_bits: int


def _activation_bits(plan: QuantPlan, tensor: str) -> int:
    return plan.activations[tensor].spec.bits if tensor in plan.activations else FLOAT_BITS


def complexity(graph: Graph, plan: QuantPlan) -> Complexity:
    """The complexity of a plan: every term of every output channel pays its MACs; scales are stored in 32 bits.

    With groups the mean count of a channel's groups is paid.
    """
    operations, bits, work = 0, 0, macs(graph)
    for node in graph.linear_nodes:
        each, acts = work[node.name], _activation_bits(plan, node.inputs[0])
        if node.name in plan.weights:
            w = plan.weights[node.name]
            in_use = np.arange(1, w.terms + 1).reshape(-1, *(1,) * w.counts.ndim) <= w.counts
            share = in_use.reshape(w.terms, -1).mean(axis=1)
            operations += round(float(sum(s * spec.bits for s, spec in zip(share, w.specs, strict=True))) * each * acts)
            bits += w.storage_bits
        else:
            operations += each * FLOAT_BITS * acts
            bits += graph.param(node, "weight").size * FLOAT_BITS
    return Complexity(operations, bits)


def uniform_complexity(graph: Graph, weight_bits: int, act_bits: int, scales: int) -> Complexity:
    """The complexity of one term a weight throughout, with this many 32-bit scales."""
    elements = sum(graph.param(node, "weight").size for node in graph.linear_nodes)
    return Complexity(sum(macs(graph).values()) * weight_bits * act_bits, elements * weight_bits + 32 * scales)


def low_bit_macs(graph: Graph, plan: QuantPlan) -> dict[str, int]:
    """The multiply-accumulates per image of each layer of an integer network, those of every pair of digits counted.

    graph: batch norms folded.  With `two-terms` and `signed-terms` they multiply 4 bits by 4: a channel's weights
    pay for the most digits that one of its codes needs, activations for those that a code of their grid may need.

    Raises ArgumentError for a plan that is not for an integer-only network.
    """
    if plan.integer is None:
        raise ArgumentError(complaint("a plan without an IntegerSpec", "one with", "low_bit_macs"))
    edges, work, product = edges_of(graph, plan), macs(graph), plan.integer.product
    counted = {}
    for node in graph.linear_nodes:
        w, read = plan.weights[node.name], edges[node.inputs[0]].spec
        codes = w.codes[0].reshape(len(w.codes[0]), -1).astype(np.float64)
        digits_w = terms_needed(codes, w.specs[0], product).max(axis=1, initial=1)
        digits_x = terms_needed(np.arange(read.qmin, read.qmax + 1.0), read, product, moved=True).max()
        counted[node.name] = int(work[node.name] // len(codes) * digits_w.sum() * digits_x)
    return counted
