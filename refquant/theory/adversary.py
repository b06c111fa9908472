"""How bad codes can be: an adversary who moves them against a form of the output, within what bounds allow for.

Letters: u the gradient of a form of the output by what a quantizer gives, d its error.

Each value that a quantizer reads is moved to an end of where its rounding mode may take it (`quantizer_error`), by the
sign of u; then gradients are taken anew.  What is reached is reached: a lower bound on the worst case, for which the
bounds of `bounds` are upper bounds.  To first order, with no promise to find the worst.  Ends need not be codes of the
grid, nor are they in the bounds.

Runs are float64, without outward rounding.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..net.graph import Graph
from ..net.op import Point
from ..net.ops import OPS
from ..net.plan import QuantPlan
from ..quant.quantizer import fake_quantize
from .box import point
from .difference import Network, quantized_network
from .pair import images_of
from .quantizer_error import quantizer_error

__all__ = ["gradients", "least_forms", "moved_run"]

Reals = NDArray[np.float64]

ROUNDS = 3
"""How often gradients are taken anew."""


def moved_run(network: Network, x: Reals, signs: Mapping[str, Reals]) -> dict[str, Reals]:
    """The quantized run with what each quantizer gives moved, by its sign, as far as its mode may; 0: not at all.

    x: the input as the network sees it.  signs: by the name of a quantizer's value; all 0 where none is given.
    The codes of what is known before any sum, and of zeros, stay: they are those of what is known in bounds, too.

    >>> from ..net.graph import InputSpec, Node
    >>> graph = Graph("flat", InputSpec("x", (1,)), "y", (Node("y", "Relu", ("x",)),), {})
    >>> moved_run(quantized_network(graph, QuantPlan()), np.array([[-3.0]]), {})["y"].tolist()
    [[0.0]]
    """
    values, known = {network.start: x}, {network.start}
    for step in network.steps:
        v, sure = [values[name] for name in step.inputs], known.issuperset(step.inputs)
        if step.linear is not None:
            out, sure = step.linear.forward(v) + step.linear.constant, sure and not step.linear.roundings
        elif step.quantizer is None:
            out = OPS[step.kind].forward(step.attrs, {}, v)
        else:
            spec, *parameters = step.quantizer
            coded = fake_quantize(v[0].astype(np.float32), *parameters, spec=spec).astype(np.float64)
            d, sign = quantizer_error(*step.quantizer, point(v[0]), network.to), signs.get(step.name, np.zeros(()))
            moved = v[0] + np.where(sign > 0, d.high, np.where(sign < 0, d.low, 0.0))
            out = coded if sure else np.where(v[0] == 0, coded, moved)
        values[step.name] = out
        known |= {step.name} if sure else set()
    return values


def gradients(network: Network, values: Mapping[str, Reals], form: Reals) -> dict[str, Reals]:
    """The gradient of a form of the output, shape (N, *output), by every value of a run; through quantizers as if none.

    >>> from ..net.graph import InputSpec, Node
    >>> graph = Graph("flat", InputSpec("x", (1,)), "y", (Node("y", "Relu", ("x",)),), {})
    >>> network = quantized_network(graph, QuantPlan())
    >>> gradients(network, moved_run(network, np.array([[3.0]]), {}), np.array([[2.0]]))["x"].tolist()
    [[2.0]]
    """
    u = {network.output: form}
    for step in reversed(network.steps):
        if step.name not in u:
            continue
        v = u[step.name]
        if step.quantizer is not None:
            parts = [v]
        elif step.linear is not None:
            parts = step.linear.pull(v)
        else:
            at = Point(step.attrs, {}, [values[name] for name in step.inputs], values[step.name])
            parts = [OPS[step.kind].derivative.vjp(at, v, [0])[0]]
        for name, part in zip(step.inputs, parts, strict=True):
            u[name] = u[name] + part if name in u else part
    return u


def least_forms(graph: Graph, plan: QuantPlan, x: ArrayLike, forms: Reals) -> Reals:
    """The least values of forms of the quantized output that were reached, shape (N, K).

    x: images, as for `bound_error`.  forms: shape (N, K, *output's shape).

    >>> from ..net.graph import InputSpec, Node
    >>> from ..net.plan import ActivationQuantizer
    >>> from ..quant.spec import QuantSpec
    >>> dense = {"in_features": 1, "out_features": 1}
    >>> nodes = (Node("y", "Gemm", ("x",), dense, {"weight": "v"}), Node("z", "Gemm", ("y",), dense, {"weight": "w"}))
    >>> graph = Graph("line", InputSpec("x", (1,)), "z", nodes, {"v": np.float32([[0.5]]), "w": np.float32([[2]])})
    >>> plan = QuantPlan(activations={"y": ActivationQuantizer(QuantSpec(4), np.array(0.5), np.array(0))})
    >>> least_forms(graph, plan, [[1.0]], np.ones((1, 1, 1))).round(4).tolist()  # 2 (0.5 - 0.25)
    [[0.5]]
    """
    network, feed = quantized_network(graph, plan), images_of(graph, x)[graph.input.name]
    still = moved_run(network, feed, {})
    least = np.empty(forms.shape[:2])
    for k in range(forms.shape[1]):
        form, values = forms[:, k], still
        reached = np.full(len(form), np.inf)
        for _ in range(ROUNDS):
            u = gradients(network, values, form)
            values = moved_run(network, feed, {name: -v for name, v in u.items()})
            reached = np.minimum(reached, np.sum((form * values[network.output]).reshape(len(form), -1), axis=1))
        least[:, k] = reached
    return least
