"""What the curvature of a loss says of quantized weights, beside what is measured: second-order models, not bounds.

Letters: theta the weights, dW_l what quantization adds to those of layer l, z the logits, p = softmax(z), J_l the
Jacobian of z by W_l for one image, S = diag(p) - p p^T the Hessian of the cross-entropy by z, G = E J^T S J the
Gauss-Newton matrix with E the mean over images.

- Trace.  With M = J_l J_l^T, of the size of the logits, Tr G_l = E Tr(S M).  It is Fisher's too: for labels drawn from
  p, E |J_l^T (p - y)|^2 = Tr(S M).  With the true labels it is the empirical Fisher trace, something else.
- Each logit of a network of ReLUs and max pools is piecewise linear in one layer's weights, so within its pieces G_l is
  the whole Hessian by W_l.  That by two layers' weights has a second term, sum dL/dz_k d^2 z_k, that G leaves out.
- HAWQ-V2's score (Dong et al. 2020), Tr(H_l) / n_l |dW_l|^2: the mean of dW^T H dW over directions of dW.
- BRECQ's theorem (Li et al. 2021, theorem 3.1): dtheta^T G dtheta is about E dz^T S dz, exact as dtheta goes to 0.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arith.blas import one_blas_thread
from ..errors import ArgumentError, complaint
from ..net.gradient import Tape, pushforward, run
from ..net.graph import Graph
from ..net.loss import cross_entropy, divergence
from ..net.op import Array
from ..net.plan import QuantPlan
from .jacobian import second_moments, unit_rows
from .pair import Source, images_of, pair_of

__all__ = [
    "TheoremRatio",
    "Trace",
    "hawq_scores",
    "layer_traces",
    "logits_of",
    "theorem_ratio",
    "uniform_perturbation",
    "weight_errors",
]

Reals = NDArray[np.float64]

BATCH = 32
"""Images whose rows of the Jacobian are held at once."""

# ---- traces ---------------------------------------------------------------------------------------------------


class Trace(NamedTuple):
    """Of one layer's weights: Tr G, which is Fisher's trace; that of the empirical Fisher matrix; and their number."""

    gauss_newton: float
    empirical_fisher: float
    parameters: int


def _softmax(z: Array) -> Reals:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def logits_of(tape: Tape, where: str) -> Array:
    """The output of a run, shape (N, classes).

    Raises ArgumentError, from `where`, for an output that is no list of logits.
    """
    z = tape.output
    if z.ndim != 2:
        raise ArgumentError(complaint(f"an output of shape {z.shape[1:]} an image", "a list of logits", where))
    return z


def layer_traces(graph: Graph, x: ArrayLike, labels: ArrayLike) -> dict[str, Trace]:
    """The traces of the cross-entropy's curvature by the weight of every Conv and Gemm, exact up to rounding.

    graph: float, with logits for output; batch norms are folded.  x: images, shape (N, *input); labels: shape (N,).

    Raises ArgumentError for images, labels and outputs that do not fit.

    >>> from ..net.graph import InputSpec, Node
    >>> z = Node("z", "Gemm", ("x",), {"in_features": 1, "out_features": 2}, {"weight": "w"})
    >>> graph = Graph("two", InputSpec("x", (1,)), "z", (z,), {"w": np.zeros((2, 1), np.float32)})
    >>> layer_traces(graph, [[2.0]], [0])  # p = 1/2: |x|^2 times Tr S = 1/2, and times |p - y|^2 = 1/2
    {'z': Trace(gauss_newton=2.0, empirical_fisher=2.0, parameters=2)}
    """
    pair, feeds = pair_of(graph, QuantPlan()), images_of(graph, x)
    (images,) = feeds.values()
    y = np.asarray(labels)
    if y.shape != images.shape[:1]:
        raise ArgumentError(
            complaint(f"labels of shape {y.shape}", f"one for each of {len(images)} images", "layer_traces")
        )
    ones = {
        Source(node.name, "weight"): (f"{node.name}:weight", np.ones_like(pair.graph.param(node, "weight"), float))
        for node in pair.graph.linear_nodes
    }
    sums = {source: np.zeros(2) for source in ones}
    with one_blas_thread():
        for i in range(0, len(images), BATCH):
            tape = pair.run({graph.input.name: images[i : i + BATCH]}, graph.output, ())
            z = logits_of(tape, "layer_traces")
            p, off = _softmax(z), cross_entropy(z, y[i : i + BATCH]).cotangent * len(z)
            for source, M in second_moments(tape, unit_rows(z), ones).items():
                tr = np.einsum("nc,ncc->", p, M) - np.einsum("nc,ncd,nd->", p, M, p)
                sums[source] += tr, np.einsum("nc,ncd,nd->", off, M, off)
    means = {source: (total / len(images)).tolist() for source, total in sums.items()}
    return {source.name: Trace(gn, fisher, ones[source][1].size) for source, (gn, fisher) in means.items()}


def weight_errors(graph: Graph, plan: QuantPlan) -> dict[str, Reals]:
    """dW by the name of a Conv or Gemm whose weight the plan quantizes.

    >>> from refquant.zoo import load_network
    >>> weight_errors(load_network("mlp"), QuantPlan())
    {}
    """
    pair = pair_of(graph, plan)
    arrays = {s.name: array for s, array in pair.sources.items() if s.kind == "weight"}
    return {name: pair.params[a].astype(np.float64) - pair.graph.arrays[a] for name, a in arrays.items()}


def hawq_scores(traces: Mapping[str, Trace], errors: Mapping[str, Array]) -> dict[str, float]:
    """Tr(G_l) / n_l |dW_l|^2 / 2 by layer: the loss that an error of this length adds, over all its directions.

    HAWQ-V2 has no half and takes H for G: see above.  Errors as by `weight_errors`.

    >>> hawq_scores({"z": Trace(2.0, 2.0, 2)}, {"z": np.array([[1.0], [1.0]])})
    {'z': 1.0}
    """
    return {
        name: traces[name].gauss_newton / traces[name].parameters * float(np.sum(dW * dW)) / 2
        for name, dW in errors.items()
    }


# ---- BRECQ's theorem ------------------------------------------------------------------------------------------


class TheoremRatio(NamedTuple):
    """E dz^T S dz over dtheta^T G dtheta, and 2 E KL(p || p^) over E dz^T S dz: both 1 in the limit of no perturbation.

    NaN where nothing moves.
    """

    output_over_weights: float
    divergence_over_output: float


def uniform_perturbation(graph: Graph, size: float, rng: np.random.Generator) -> dict[str, Reals]:
    """Independent uniform errors of up to `size` times the largest magnitude of each weight, by layer.

    >>> from refquant.zoo import load_network
    >>> sorted(uniform_perturbation(load_network("mlp"), 0.1, np.random.default_rng(0)))
    ['gemm1', 'gemm2', 'gemm3']
    """
    own = pair_of(graph, QuantPlan()).graph
    weights = {node.name: own.param(node, "weight") for node in own.linear_nodes}
    return {name: size * float(np.abs(W).max()) * rng.uniform(-1, 1, W.shape) for name, W in weights.items()}


def theorem_ratio(graph: Graph, x: ArrayLike, perturbation: Mapping[str, Array]) -> TheoremRatio:
    """Both ratios for a perturbation of weights, by the name of a Conv or Gemm; all images are held at once.

    Raises ArgumentError for names and shapes that do not fit.

    >>> from refquant.zoo import load_data, load_network
    >>> graph, x = load_network("mlp"), load_data("fashion-mnist").test.x[:4]
    >>> found = theorem_ratio(graph, x, uniform_perturbation(graph, 1e-6, np.random.default_rng(0)))
    >>> [round(ratio, 2) for ratio in found]
    [1.0, 1.0]
    """
    pair, feeds = pair_of(graph, QuantPlan()), images_of(graph, x)
    errors = {f"{name}:weight": dW for name, dW in perturbation.items()}
    with one_blas_thread():
        tape = pair.run(feeds, graph.output, ())
        z = logits_of(tape, "theorem_ratio")
        params = {a: pair.graph.arrays[a].astype(np.float64) + dW for a, dW in errors.items() if a in pair.graph.arrays}
        moved = run(pair.graph, feeds, params).output
        linear = pushforward(tape, errors)[tape.result] if errors else np.zeros_like(z)
    S = divergence(z, z).curvature
    dz = moved - z
    output, weights = float(np.sum(dz * S(dz))), float(np.sum(linear * S(linear)))
    kl = divergence(moved, z).value
    return TheoremRatio(output / weights if weights else float("nan"), 2 * kl / output if output else float("nan"))
