"""Certified bounds on the error of a quantized network, tensor by tensor and image by image.

Letters: a a tensor of the reference, `forward` in float32, as recorded; a + e that of the quantized run; |e| the
Euclidean norm of an image's e.

Three ways, each sound in floating point: interval arithmetic (`enclose`), Euclidean norms (`norm_bounds`), and affine
arithmetic (`bound_forms`).  They rest on the float run alone.  Unless codes are taken as specified, they hold for
every quantized run whose codes err no more than their rounding mode may, however it sums; so a kernel that is a last
bit off before a quantizer, or breaks ties otherwise, is covered.  Only where it is known beforehand what a quantizer
reads, the input and zeros of a Relu that surely stays off, its code is the one that the rule gives.

Proofs: proofs/08_bounds.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError, complaint
from ..net.forward import forward
from ..net.graph import Graph
from ..net.plan import QuantPlan
from ..net.program import transform
from .affine import refine_up_to, refined
from .box import Box, certain, hull, point
from .difference import Enclosure, Network, enclose, float_network, quantized_network
from .norms import euclidean, norm_bounds
from .pair import images_of
from .rounding_error import TINY, UNITS, gamma, probable_gamma, sum_down, sum_up

__all__ = [
    "WIDTH",
    "ErrorBounds",
    "Tightness",
    "bound_error",
    "bound_rounding",
    "measured_errors",
    "start_box",
    "tightness",
]

Reals = NDArray[np.float64]

WIDTH = 256
"""Elements of a value up to which affine arithmetic refines it, unless asked otherwise: each costs a run back."""


@dataclass(frozen=True, eq=False)
class ErrorBounds:
    """Bounds on e by tensor, for every tensor that the output depends on; names are those of `forward(mode="fake")`.

    reference: a by the name of a tensor of the network as it stands, shape (N, ...).
    interval: boxes by interval arithmetic.  affine: boxes in which these are met with those by affine arithmetic, which
    refines the linear steps of at most `width` elements.  norm: bounds on |e|, shape (N,).
    enclosure: what `affine` came by, with which any linear form of e can be bounded (`affine.bound_forms`).
    failure: 0 for certain bounds; else the boxes of `affine` hold, all of an image at once, but with this probability.
    """

    reference: Mapping[str, Reals]
    interval: Mapping[str, Box]
    affine: Mapping[str, Box]
    norm: Mapping[str, Reals]
    enclosure: Enclosure
    failure: float


# ---- what is bounded ------------------------------------------------------------------------------------------


def recorded(graph: Graph, x: ArrayLike) -> dict[str, Reals]:
    """The reference's tensors, in float64.

    Raises ArgumentError for images that do not fit, NotANumberError for a NaN.

    >>> from ..net.graph import InputSpec, Node
    >>> recorded(Graph("flat", InputSpec("x", (1,)), "y", (Node("y", "Relu", ("x",)),), {}), [[-3]])["y"].tolist()
    [[0.0]]
    """
    images_of(graph, x)
    _, trace = forward(graph, x, trace=True)
    return {name: v.astype(np.float64) for name, v in trace.items()}


def start_box(graph: Graph, x: ArrayLike, radius: float) -> Box:
    """The error of the input, for all images whose pixels are within the radius of those of x: `transform` is monotone.

    Raises ArgumentError for a radius that is not finite and at least 0.

    >>> from ..net.graph import InputSpec, Node
    >>> graph = Graph("flat", InputSpec("x", (1,), scale=0.5), "y", (Node("y", "Relu", ("x",)),), {})
    >>> start_box(graph, [[3.0]], 1.0)
    Box(low=array([[-0.5]]), high=array([[0.5]]))
    """
    if not (math.isfinite(radius) and radius >= 0):
        raise ArgumentError(complaint(f"radius={radius}", "finite and at least 0", "bounds"))
    X, middle = np.asarray(x), images_of(graph, x)[graph.input.name]
    if not radius:
        return point(np.zeros_like(middle))
    r, wide = np.asarray(float(radius)), X.astype(np.float64)
    ends = (transform(graph.input, end).astype(np.float64) for end in (sum_down(wide, -r), sum_up(wide, r)))
    return certain(hull(ends) - point(middle))


def _shown(network: Network, seen: Mapping[str, Reals], boxes: Mapping[str, Box]) -> dict[str, Box]:
    """The boxes of the tensors that `forward` shows: float32, also of a float64 run."""
    found = {}
    for name, value in network.shown.items():
        box = boxes[value]
        if network.to != "float32":
            size = np.abs(seen[network.seen[value]]) + box.magnitude
            box = box.widened(UNITS["float32"] * (1 + gamma(4)) * size + TINY["float32"])
        found[name] = box
    return found


def bound_error(
    graph: Graph,
    plan: QuantPlan,
    x: ArrayLike,
    *,
    radius: float = 0.0,
    specified: bool = False,
    width: int = WIDTH,
    confidence: float | None = None,
) -> ErrorBounds:
    """Certified bounds on the error of every tensor of a quantized network, image by image.

    graph, plan: as for `forward(mode="fake")`.  x: images, shape (N, *graph.input.shape); some dozens do at a time.
    radius: the quantized run may read any image whose pixels are within so much of x's, in their units, while the
    reference has read x.
    specified: False bounds every run whose quantizers err no more than their rounding mode may; True those whose codes
    are the ones their rules give, which for single images follows the quantized run itself, in interval arithmetic.
    width: affine arithmetic refines linear steps of at most so many elements.
    confidence: None for certain bounds.  Else the errors of quantizers are taken for independent noise about the middle
    of their interval, where that is a step wide (`quantizer_error.noise_radius`), and all boxes `affine` of an image
    hold at once with this probability: a theorem for subtractive dither of values half a step or more from the ends of
    the grid, a model for rounding, no bound.

    Infinite where nothing is known.  Raises ArgumentError for images, a plan, or an op that do not fit (quantizers have
    to saturate and be deterministic), a radius that is not finite and at least 0, and a confidence that is not between
    0 and 1.
    Source: the module's letters and proofs/08_bounds.py.

    >>> from ..net.graph import InputSpec, Node
    >>> from ..net.plan import ActivationQuantizer
    >>> from ..quant.spec import QuantSpec
    >>> dense = {"in_features": 1, "out_features": 1}
    >>> nodes = (Node("y", "Gemm", ("x",), dense, {"weight": "v"}), Node("z", "Gemm", ("y",), dense, {"weight": "w"}))
    >>> graph = Graph("line", InputSpec("x", (1,)), "z", nodes, {"v": np.float32([[0.5]]), "w": np.float32([[2]])})
    >>> quantizers = {name: ActivationQuantizer(QuantSpec(4), np.array(0.5), np.array(0)) for name in ("x", "y")}
    >>> found = bound_error(graph, QuantPlan(activations=quantizers), [[1.125]])
    >>> e_y, e_z = found.affine["y"], found.affine["z"]  # 0.5 (1 - 1.125), and 2 (e_y +- 0.25)
    >>> [e.round(5).item() for e in (*e_y, *e_z)]
    [-0.0625, -0.0625, -0.625, 0.375]
    """
    network, seen = quantized_network(graph, plan), recorded(graph, x)
    start = start_box(graph, x, radius)
    failure = None if confidence is None else _failure(confidence, "bound_error")
    plain = enclose(network, seen, start, specified=specified)
    each = None
    if failure is not None:  # every element that is refined may fail
        sizes = [math.prod(network.shapes[name]) for name in plain.pieces if refined(plain, name, width)]
        each = failure / max(1, sum(sizes))
    found = enclose(network, seen, start, specified=specified, refine=refine_up_to(width, each))
    norms = norm_bounds(network, seen, euclidean(start.magnitude))
    interval, affine = (_shown(network, seen, v.errors) for v in (plain, found))
    shown = {name: _shown_norm(network, seen[network.seen[v]], norms[v]) for name, v in network.shown.items()}
    return ErrorBounds(seen, interval, affine, shown, found, failure or 0.0)


def _failure(confidence: float, where: str) -> float:
    if not 0 < confidence < 1:
        raise ArgumentError(complaint(f"confidence={confidence}", "between 0 and 1", where))
    return 1 - confidence


def _shown_norm(network: Network, a: Reals, E: Reals) -> Reals:
    """A bound on the norm, also for a tensor of a float64 run that is shown in float32."""
    if network.to == "float32":
        return E
    moved = UNITS["float32"] * (euclidean(a) + E) + TINY["float32"] * math.sqrt(a[0].size)
    return np.asarray((E + moved) * (1 + gamma(8)))


def bound_rounding(graph: Graph, x: ArrayLike, *, confidence: float | None = None) -> dict[str, Box]:
    """Bounds on what float32 rounding alone may do: any other float32 run of the network less the reference, by tensor.

    Other runs may sum in any order, and use fused operations; the network is not quantized, batch norms are as they
    stand, each a line k x + c with the k and c of `forward`: a run that takes off the mean first is another.  So what
    of an error lies beyond these boxes is due to quantization.
    confidence: None for certain bounds; else roundings are taken for independent, of mean zero, and all boxes of an
    image hold at once with this probability: a model.

    Raises ArgumentError as `bound_error`.

    >>> from ..net.graph import InputSpec, Node
    >>> y = Node("y", "Gemm", ("x",), {"in_features": 1, "out_features": 1}, {"weight": "w"})
    >>> graph = Graph("third", InputSpec("x", (1,)), "y", (y,), {"w": np.float32([[1 / 3]])})
    >>> bool(bound_rounding(graph, [[1.0]])["y"].magnitude[0, 0] < 4 * 2.0**-24)
    True
    """
    network, seen, rate = float_network(graph), recorded(graph, x), gamma
    if confidence is not None:
        maps = [(step.name, step.linear.roundings) for step in network.steps if step.linear is not None]
        products = sum(math.prod(network.shapes[name]) * n for name, n in maps)
        each = _failure(confidence, "bound_rounding") / max(1, products)

        def rate(n: int, u: float = UNITS["float64"]) -> float:
            return probable_gamma(n, u, each)

    return dict(enclose(network, seen, start_box(graph, x, 0.0), rate=rate).errors)


# ---- against what is measured ---------------------------------------------------------------------------------


def measured_errors(graph: Graph, plan: QuantPlan, x: ArrayLike) -> dict[str, Reals]:
    """e as measured, for the tensors that `bound_error` bounds.

    >>> from ..net.graph import InputSpec, Node
    >>> graph = Graph("flat", InputSpec("x", (1,)), "y", (Node("y", "Relu", ("x",)),), {})
    >>> measured_errors(graph, QuantPlan(), [[3.0]])["y"].tolist()
    [[0.0]]
    """
    network, seen = quantized_network(graph, plan), recorded(graph, x)
    _, run = forward(graph, x, plan, "fake", trace=True)
    return {name: run[name].astype(np.float64) - seen[network.seen[v]] for name, v in network.shown.items()}


class Tightness(NamedTuple):
    """Of a tensor, means over images of |e| as measured and as bounded."""

    tensor: str
    measured: float
    affine: float
    norm: float
    interval: float


def tightness(bounds: ErrorBounds, errors: Mapping[str, Reals]) -> list[Tightness]:
    """The bounds beside errors that were measured, tensor by tensor, in the order of the network.

    >>> from ..net.graph import InputSpec, Node
    >>> graph = Graph("flat", InputSpec("x", (1,)), "y", (Node("y", "Relu", ("x",)),), {})
    >>> rows = tightness(bound_error(graph, QuantPlan(), [[3.0]]), measured_errors(graph, QuantPlan(), [[3.0]]))
    >>> rows[-1]
    Tightness(tensor='y', measured=0.0, affine=0.0, norm=0.0, interval=0.0)
    """

    def mean(norms: Reals) -> float:
        return float(np.mean(norms))

    def of(box: Box) -> float:
        return mean(euclidean(box.magnitude))

    return [
        Tightness(name, mean(euclidean(e)), of(bounds.affine[name]), mean(bounds.norm[name]), of(bounds.interval[name]))
        for name, e in errors.items()
    ]
