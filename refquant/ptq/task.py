"""What every method of post-training quantization starts from, and the steps that methods share.

A method is a function from a `Task` to a `QuantPlan`; `methods.METHODS` is the table of all.  Methods differ in how
they find codes, scales and biases; the rest stands here: the folded network and the tensors that calibration images
make in it, the grids, first quantizers of activations, first encodings of weights, the walk from layer to layer, and
minibatches.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arith.blas import one_blas_thread
from ..errors import ArgumentError, complaint, instance_of, one_of
from ..net.fold import fold_batch_norm, with_biases
from ..net.forward import BATCH, forward
from ..net.graph import Graph, Node
from ..net.op import Array
from ..net.ops import OPS
from ..net.plan import ActivationQuantizer, QuantPlan
from ..quant.granularity import Granularity, PerChannel
from ..quant.multiterm import MultiTerm, with_counts
from ..quant.profiles import profile as profile_of
from ..quant.spec import QuantSpec
from ..solve.terms import encode_each
from .observe import RANGES, activation_quantizers

__all__ = ["CALIBRATION_IMAGES", "Progress", "Task", "make_task", "minibatches", "silent", "walk", "weight_spec"]

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

CALIBRATION_IMAGES = 512
"""How many calibration images are used: the first of those given."""


def silent(what: str, done: int, total: int) -> None:
    """Nothing: the progress of who asks for none."""


def weight_spec(profile: str, bits: int, granularity: Granularity) -> QuantSpec:
    """The grid and rounding of a profile for weights, which are encoded offline: the quotient is exact, no zero point.

    >>> from ..quant.granularity import PerTensor
    >>> weight_spec("onnx@21", 4, PerTensor()).quotient
    'exact'
    """
    spec = profile_of(profile, bits=bits, signed=True)
    return replace(spec, granularity=granularity, quotient="exact", zero_point_order="after")


MADE_FROM = {
    "trace": {"graph", "images"},
    "activations": {"graph", "images", "bits", "profile", "observer"},
}
"""What a task makes once and keeps -> the fields that it is made from."""


@dataclass(frozen=True, eq=False)
class Task:
    """A network to quantize, and under which conditions; made by `make_task`.

    graph: batch norms folded, every Conv and Gemm with a bias of its own.  images: for calibration, at most
    `CALIBRATION_IMAGES`; labels: their classes, for the methods that use them, or None.  bits: of a term of the
    weights, and of activations (None: float).  granularity: of weights' scales.  observer: a name of
    `observe.RANGES`.  budget: bit operations at most, relative to one term throughout; None: one term.  terms: by
    node, how many terms the weight has, one number or an array of the granularity's parameter shape; 1 where nothing
    is said; starts: the encodings in these terms, by node, where they are known already.  rng: for methods that draw
    random numbers.
    """

    graph: Graph
    images: NDArray[Any]
    labels: NDArray[np.int64] | None = None
    bits: tuple[int, int | None] = (4, 8)
    granularity: Granularity = PerChannel(0)  # noqa: RUF009 (frozen, without state)
    profile: str = "seed-nearest@1"
    observer: str = "minmax"
    budget: float | None = None
    terms: Mapping[str, NDArray[np.int64] | int] = field(default_factory=dict)
    starts: Mapping[str, MultiTerm] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    progress: Progress = silent

    @cached_property
    def weight_spec(self) -> QuantSpec:
        """The grid of a weight's first term."""
        return weight_spec(self.profile, self.bits[0], self.granularity)

    @cached_property
    def activation_spec(self) -> QuantSpec | None:
        """The unsigned grid, with zero point, of what layers read; None where that stays float."""
        return None if self.bits[1] is None else profile_of(self.profile, bits=self.bits[1], signed=False)

    @cached_property
    def trace(self) -> Mapping[str, NDArray[np.float32]]:
        """All tensors of the float network, by name, the transformed images first."""
        with one_blas_thread():
            return forward(self.graph, self.images, trace=True)[1]

    @cached_property
    def activations(self) -> Mapping[str, ActivationQuantizer]:
        """A quantizer for every tensor that a layer reads, from what the observer sees; none where these stay float."""
        spec = self.activation_spec
        return {} if spec is None else activation_quantizers(self.graph, self.trace, spec, self.observer)

    def changed(self, *, activations: Mapping[str, ActivationQuantizer] | None = None, **fields: Any) -> "Task":
        """The task with other fields, or with these quantizers of activations; what is made from none of the fields
        that change (`MADE_FROM`) is not made again.
        """
        other = replace(self, **fields)
        kept = {name: getattr(self, name) for name, sources in MADE_FROM.items() if not sources & fields.keys()}
        vars(other).update(kept if activations is None else kept | {"activations": activations})
        return other

    def weight(self, node: Node) -> NDArray[np.float32]:
        """The float weight of a node."""
        return self.graph.param(node, "weight")

    def bias(self, node: Node) -> NDArray[np.float32]:
        """The float bias of a node, zeros where the network had none."""
        return self.graph.param(node, "bias")

    @property
    def encoding(self) -> str:
        """The method of `solve.terms.encode_terms` that the rounding allows: terms joint, else one after another."""
        return "joint" if self.weight_spec.rounding.startswith("half_") else "greedy"

    def encode(self, node: Node) -> MultiTerm:
        """The node's float weight in as many terms as `terms` says: scales of least squared error, codes rounded."""
        if node.name in self.starts:
            return self.starts[node.name]
        counts = np.asarray(self.terms.get(node.name, 1))
        terms = int(counts.max())
        each = encode_each(self.weight(node), spec=self.weight_spec, terms=terms, method=self.encoding)
        return with_counts(each, counts)


def make_task(
    graph: Graph,
    calibration: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    bits: tuple[int, int | None] = (4, 8),
    granularity: Granularity = PerChannel(0),  # noqa: B008 (frozen, without state)
    profile: str = "seed-nearest@1",
    observer: str = "minmax",
    budget: float | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Task:
    """The task of quantizing a network with these calibration images, once the arguments are sound.

    Raises ArgumentError for an unknown observer or profile, bits out of range, a seed below 0, no images, labels that
    are not one integer an image, what is not a network or has no Conv or Gemm.

    >>> from ..net.graph import InputSpec
    >>> y = Node("y", "Gemm", ("x",), {"in_features": 1, "out_features": 1}, {"weight": "w"})
    >>> task = make_task(Graph("twice", InputSpec("x", (1,)), "y", (y,), {"w": np.float32([[2]])}), [[1.0], [3.0]])
    >>> task.activations["x"].spec.bits, task.bias(task.graph.node("y")).tolist()
    (8, [0.0])
    """
    where = "quantize_network"
    instance_of(graph, Graph, "graph", where)
    one_of(observer, RANGES, "observer", where)
    if not (isinstance(bits, tuple | list) and len(bits) == 2):
        raise ArgumentError(complaint(f"bits={bits!r}", "(bits of weights, bits of activations)", where))
    if not (isinstance(seed, int | np.integer) and seed >= 0):
        raise ArgumentError(complaint(f"seed={seed!r}", "an integer of at least 0", where))
    for name, got, most, other in (("weight bits", bits[0], 8, ()), ("activation bits", bits[1], 16, (None,))):
        if got not in other and not (type(got) is int and 2 <= got <= most):
            should = f"an integer from 2 to {most}" + (", or None for float" if other else "")
            raise ArgumentError(complaint(f"{name} {got}", should, where))
    if not graph.linear_nodes:
        ops = ", ".join(sorted({node.op for node in graph.nodes})) or "no nodes"
        raise ArgumentError(complaint(f"a network of {ops}", "at least one Conv or Gemm", where))
    images = np.atleast_1d(calibration)[:CALIBRATION_IMAGES]
    if not len(images):
        raise ArgumentError(complaint("no calibration images", "at least one", where))
    y = None if labels is None else np.asarray(labels)[: len(images)]
    if y is not None and (y.dtype.kind not in "iu" or y.shape != (len(images),)):
        kind = f"labels of type {y.dtype} and shape {y.shape}"
        raise ArgumentError(complaint(kind, f"integers, at least one for each of {len(images)} images", where))
    folded = fold_batch_norm(graph)
    owned = {
        n.name: folded.params(n).get("bias", np.zeros(folded.shapes[n.name][0], np.float32))
        for n in folded.linear_nodes
    }
    return Task(
        with_biases(folded, owned),
        images,
        None if y is None else y.astype(np.int64),
        bits,
        granularity,
        profile,
        observer,
        budget,
        rng=np.random.default_rng(seed),
        progress=progress,
    )


# ---- steps ----------------------------------------------------------------------------------------------------

Layer = Callable[[Node, Array, Array], tuple[MultiTerm, Array]]
"""From a node, what it reads in the float network, and what it reads in the quantized one (quantizer applied), both
for all calibration images, to its weight and its bias."""


def walk(task: Task, layer: Layer, what: str = "quantizing layers") -> QuantPlan:
    """The plan of a method that goes from layer to layer, each seeing what the quantized ones before it make.

    layer: called once for every Conv and Gemm, in order.  Activations are read through `task.activations`.
    """
    plan = QuantPlan(activations=task.activations)
    weights: dict[str, MultiTerm] = {}
    biases: dict[str, Array] = {}
    linear = [node.name for node in task.graph.linear_nodes]
    values = {task.graph.input.name: task.trace[task.graph.input.name]}
    with one_blas_thread():
        for node in task.graph.nodes:
            inputs, params = [values[tensor] for tensor in node.inputs], task.graph.params(node)
            if node.name in linear:
                inputs = [plan.activation(tensor, x) for tensor, x in zip(node.inputs, inputs, strict=True)]
                sums, bias = layer(node, task.trace[node.inputs[0]], inputs[0])
                weights[node.name], biases[node.name] = sums, np.asarray(bias, np.float32)
                params = {"weight": sums.decode(), "bias": biases[node.name]}
                task.progress(what, len(weights), len(linear))
            values[node.name] = _applied(node, params, inputs)
    return QuantPlan(weights, task.activations, biases=biases)


def _applied(node: Node, params: Mapping[str, Array], inputs: list[Array]) -> Array:
    """A node's output, batch by batch as `forward` has it."""
    parts = [
        OPS[node.op].forward(node.attrs, params, [x[start : start + BATCH] for x in inputs])
        for start in range(0, len(inputs[0]), BATCH)
    ]
    return np.concatenate(parts)


def minibatches(task: Task, size: int, steps: int) -> Iterator[NDArray[np.int64]]:
    """Indices of calibration images, `size` a step without repetition (all, if there are fewer): epoch after epoch,
    each in a random order; an epoch's last images that fill no batch wait for another.

    >>> from ..net.graph import InputSpec
    >>> y = Node("y", "Gemm", ("x",), {"in_features": 1, "out_features": 1}, {"weight": "w"})
    >>> task = make_task(Graph("twice", InputSpec("x", (1,)), "y", (y,), {"w": np.float32([[2]])}), np.ones((5, 1)))
    >>> [len(set(batch.tolist())) for batch in minibatches(task, 2, 3)]
    [2, 2, 2]
    """
    N = len(task.images)
    size = min(size, N)
    done = 0
    while done < steps:
        order = task.rng.permutation(N)
        for start in range(0, N - size + 1, size):
            if done == steps:
                return
            yield order[start : start + size]
            done += 1
