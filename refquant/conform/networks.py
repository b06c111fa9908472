"""Whole integer networks as requests: the embedded networks with plans whose every number is an array of the request.

A request holds the images x; for each Conv and Gemm NAME.weight (codes), NAME.weight_scale and NAME.bias (codes at
the accumulators' scale); for each quantized tensor NAME.scale and NAME.zero_point; and the name of the network, whose
graph with batch norms folded a pack holds beside.  Plans were made once (`make_plans.py`) and are data: a plan made
anew could differ in the last bits of a scale on another machine, the answers for a given one cannot.
"""

from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..net.fold import fold_batch_norm
from ..net.forward import forward
from ..net.graph import Graph
from ..net.plan import ActivationQuantizer, QuantPlan
from ..quant.granularity import PerChannel, PerTensor
from ..quant.integer_spec import IntegerSpec, quantize_bias
from ..quant.multiterm import MultiTerm
from ..quant.spec import QuantSpec
from ..zoo import NETWORKS, load_network
from .case import Case, Family

__all__ = ["FAMILIES", "PLANS", "arrays_of", "network_of", "run_network"]

Array = NDArray[Any]
Arrays = Mapping[str, Any]

PLANS = Path(str(files(__package__) / "plans"))


# ---- plans as arrays ------------------------------------------------------------------------------------------


def arrays_of(graph: Graph, plan: QuantPlan) -> dict[str, Array]:
    """The arrays of a plan for an integer-only network, by the names above; biases rounded half to even."""
    graph = fold_batch_norm(graph)
    found: dict[str, Array] = {}
    for tensor, quantizer in plan.activations.items():
        found[f"{tensor}.scale"] = np.asarray(quantizer.scale, np.float32)
        found[f"{tensor}.zero_point"] = np.asarray(quantizer.zero_point, np.int32)
    for node in graph.linear_nodes:
        terms = plan.weights[node.name]
        found[f"{node.name}.weight"] = terms.codes[0].astype(np.int8)
        found[f"{node.name}.weight_scale"] = terms.scales[0].astype(np.float32)
    return found


def network_of(name: str, arrays: Arrays, spec: QuantSpec, integer: IntegerSpec) -> tuple[Graph, QuantPlan]:
    """The embedded network with batch norms folded, and the plan that arrays hold; activations by spec.

    Raises ArgumentError for another name, and where the plan is not of this network.
    """
    graph = fold_batch_norm(load_network(name))
    activations = {
        tensor: ActivationQuantizer(spec, arrays[f"{tensor}.scale"], arrays[f"{tensor}.zero_point"])
        for tensor in graph.shapes
        if f"{tensor}.scale" in arrays
    }
    weights: dict[str, MultiTerm] = {}
    for node in graph.linear_nodes:
        codes, scales = arrays[f"{node.name}.weight"], np.asarray(arrays[f"{node.name}.weight_scale"])
        grid = QuantSpec(8, granularity=PerChannel(0) if scales.size > 1 else PerTensor())
        weights[node.name] = MultiTerm(codes[None].astype(np.int32), scales[None], (grid,), np.ones(scales.shape, int))
    return graph, QuantPlan(weights, activations, integer)


def run_network(name: str, inputs: Arrays, spec: QuantSpec, integer: IntegerSpec) -> dict[str, Array]:
    """The codes of every tensor, by the product's own interpreter."""
    graph, plan = network_of(name, inputs, spec, integer)
    _, trace = forward(graph, inputs["x"], plan, "integer", trace=True)
    return {tensor: codes.astype(np.int32) for tensor, codes in trace.items()}


# ---- cases ----------------------------------------------------------------------------------------------------


def _networks(rng: np.random.Generator) -> Iterator[Case]:
    for name in NETWORKS:
        with np.load(PLANS / f"{name}.npz", allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        graph, plan = network_of(name, arrays, QuantSpec(8, False), IntegerSpec())
        for node in graph.linear_nodes:
            s = float(plan.activations[_quantized(graph, plan, node.inputs[0])].scale)
            bias = quantize_bias(graph.param(node, "bias"), s, arrays[f"{node.name}.weight_scale"], spec=IntegerSpec())
            arrays[f"{node.name}.bias"] = bias.astype(np.int32)
        yield Case("network", arrays, signed=False, options={"network": name}, comment=f"{name}, layer by layer")


def _quantized(graph: Graph, plan: QuantPlan, tensor: str) -> str:
    """The tensor whose quantizer serves this one: its own, or that of the node which alone reads it."""
    return tensor if tensor in plan.activations else graph.readers(tensor)[0].name


FAMILIES: dict[str, Family] = {
    "network": Family(
        "typical", "whole networks, every tensor", "layers that are right alone go wrong together", _networks
    )
}
"""flag -> family."""
