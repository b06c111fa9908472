"""Proofs, image by image, that quantization cannot change the class, and how many images have one.

Letters: z the logits of the float run, y its class, e their errors; g_i = (z_y + e_y) - (z_i + e_i) the gap to class i.

If g_i > 0 for every i != y and every e that is possible, the quantized class is y.  g_i is a linear form of e: affine
arithmetic bounds it as one, so that what moves both logits cancels, unless the boxes of the two are better.  The
bounds rest on the float run alone, so a certificate covers every run whose quantizers err no more than their rounding
mode may.  With codes as specified and a single image there is nothing to foresee: such a certificate says little more
than a comparison of classes, except that it holds for any order of the sums.

For all images near one, the float class has to stay, too: its gaps are bounded in the same way.

`zonotope.check_certificates` proves them again, by other code, and forward.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError, CertificateError, complaint
from ..net.forward import forward
from ..net.graph import Graph, macs
from ..net.plan import QuantPlan
from .affine import bound_forms, refine_up_to
from .bounds import WIDTH, recorded, start_box
from .box import Box
from .difference import Enclosure, enclose, float_network, quantized_network
from .rounding_error import sum_down

__all__ = ["Certificates", "Coverage", "certify", "coverage", "smallest_terms", "term_counts"]

Reals = NDArray[np.float64]
Progress = Callable[[int], object]

BATCH = 16
"""Images whose enclosures are held at once."""


@dataclass(frozen=True, eq=False)
class Certificates:
    """What is proved of some images: every gap is at least this.

    classes: y, shape (N,).  gaps: of the quantized run, shape (N, C), infinite at y.  float_gaps: those of the float
    run, at the images themselves or, with a radius, at all that are near.
    radius, specified: as for `certify`.
    """

    classes: NDArray[np.int64]
    gaps: Reals
    float_gaps: Reals
    radius: float
    specified: bool

    @property
    def certified(self) -> NDArray[np.bool_]:
        """Whether no gap can close, shape (N,)."""
        stays = (self.float_gaps > 0).all(axis=1) | (self.radius == 0)  # y is the class of the image itself
        return np.asarray((self.gaps > 0).all(axis=1) & stays)


# ---- gaps -----------------------------------------------------------------------------------------------------


def _gap_forms(y: NDArray[np.int64], C: int) -> Reals:
    """The forms e_y - e_i of every class i, shape (N, C, C)."""
    return np.eye(C)[y][:, None, :] - np.eye(C)


def _least_gaps(found: Enclosure, z: Reals, y: NDArray[np.int64]) -> Reals:
    """Lower bounds on the gaps at the output of a run."""
    rows, e = np.arange(len(z)), found.errors[found.network.output]
    form = bound_forms(found, found.network.output, _gap_forms(y, z.shape[1])).low
    apart = sum_down(e.low[rows, y][:, None], -e.high)
    gaps = sum_down(_gaps(z, y), np.maximum(form, apart))
    gaps[rows, y] = np.inf
    return np.where(np.isnan(gaps), -np.inf, gaps)


def _gaps(z: Reals, y: NDArray[np.int64]) -> Reals:
    """z_y - z_i, rounded down; -inf where they have overflowed."""
    gaps = sum_down(z[np.arange(len(z)), y][:, None], -z)
    return np.where(np.isnan(gaps), -np.inf, gaps)


def certify(
    graph: Graph,
    plan: QuantPlan,
    x: ArrayLike,
    *,
    radius: float = 0.0,
    specified: bool = False,
    width: int = WIDTH,
    progress: Progress | None = None,
) -> Certificates:
    """Lower bounds on the gaps of the classes of a quantized network; where all are above 0 the class cannot change.

    Arguments and errors are those of `bound_error`, of which some hundreds of images do here; the output is a list of
    at least two logits.
    radius: certify all images whose pixels are within so much of x's: float and quantized class are y for all.
    progress: called with the number of images of each batch that is done.

    >>> from ..net.graph import InputSpec, Node
    >>> z = Node("z", "Gemm", ("x",), {"in_features": 2, "out_features": 2}, {"weight": "w"})
    >>> graph = Graph("same", InputSpec("x", (2,)), "z", (z,), {"w": np.eye(2, dtype=np.float32)})
    >>> found = certify(graph, QuantPlan(), [[3.0, 1.0], [1.0, 1.0]])
    >>> found.classes.tolist(), found.certified.tolist(), found.gaps[0].round(5).tolist()
    ([0, 0], [True, False], [inf, 2.0])
    """
    network, reference = quantized_network(graph, plan), float_network(graph)
    start, seen = start_box(graph, x, radius), recorded(graph, x)
    z, refine = seen[graph.output], refine_up_to(width)
    if z.ndim != 2 or z.shape[1] < 2:
        raise ArgumentError(complaint(f"an output of shape {z.shape}", "(N, classes), at least 2 classes", "certify"))
    y, gaps, near = z.argmax(axis=1), np.empty_like(z), _gaps(z, z.argmax(axis=1))
    near[np.arange(len(z)), y] = np.inf
    for n in range(0, len(z), BATCH):
        part = slice(n, n + BATCH)
        here, box = {name: v[part] for name, v in seen.items()}, Box(start.low[part], start.high[part])
        found = enclose(network, here, box, specified=specified, refine=refine)
        gaps[part] = _least_gaps(found, z[part], y[part])
        if radius:
            near[part] = _least_gaps(enclose(reference, here, box, refine=refine), z[part], y[part])
        if progress is not None:
            progress(len(here[graph.output]))
    return Certificates(y, gaps, near, radius, specified)


# ---- on a set -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coverage:
    """Of so many images: of how many the class is certified, and of how many it was measured to stay."""

    images: int
    certified: int
    agreeing: int


def coverage(
    graph: Graph, plan: QuantPlan, x: ArrayLike, *, width: int = WIDTH, progress: Progress | None = None
) -> Coverage:
    """How many images have a certificate that their class stays, beside how many classes did stay in a run.

    Raises CertificateError where the class of a certified image changed in that run: then a bound is wrong.  Other
    errors as `certify`.

    >>> from ..net.graph import InputSpec, Node
    >>> z = Node("z", "Gemm", ("x",), {"in_features": 2, "out_features": 2}, {"weight": "w"})
    >>> graph = Graph("same", InputSpec("x", (2,)), "z", (z,), {"w": np.eye(2, dtype=np.float32)})
    >>> coverage(graph, QuantPlan(), [[3.0, 1.0], [1.0, 1.0]])  # the classes of a tie are as its roundings
    Coverage(images=2, certified=1, agreeing=2)
    """
    found = certify(graph, plan, x, width=width, progress=progress)
    same = forward(graph, x, plan, "fake").argmax(axis=1) == found.classes
    wrong = int((found.certified & ~same).sum())
    if wrong:
        raise CertificateError(complaint(f"{wrong} certified classes that changed", "none", "coverage"))
    return Coverage(len(same), int(found.certified.sum()), int(same.sum()))


def term_counts(graph: Graph, plan: QuantPlan) -> Iterator[tuple[dict[str, int], QuantPlan]]:
    """All plans that keep only the first terms of each weight, from 1 to all it has, with their counts by layer.

    In the order of their cost, the sum over layers of MACs times terms; those of equal cost with fewer terms in later
    layers first.  There are T^layers: for networks of few layers.

    >>> from ..quant.spec import QuantSpec
    >>> from ..net.graph import InputSpec, Node
    >>> from ..solve.terms import encode_terms
    >>> z = Node("z", "Gemm", ("x",), {"in_features": 2, "out_features": 1}, {"weight": "w"})
    >>> graph = Graph("sum", InputSpec("x", (2,)), "z", (z,), {"w": np.float32([[1.0, 0.3]])})
    >>> plan = QuantPlan({"z": encode_terms([[1.0, 0.3]], spec=QuantSpec(2), terms=3)})
    >>> [counts for counts, _ in term_counts(graph, plan)]
    [{'z': 1}, {'z': 2}, {'z': 3}]
    """
    each = macs(graph)
    most = {name: terms.terms for name, terms in plan.weights.items()}
    every = [dict(zip(most, counts, strict=True)) for counts in product(*(range(1, T + 1) for T in most.values()))]
    every.sort(key=lambda counts: sum(each[name] * T for name, T in counts.items()))
    for counts in every:
        yield counts, replace(plan, weights={name: plan.weights[name].truncated(T) for name, T in counts.items()})


def smallest_terms(
    graph: Graph,
    plans: Iterable[tuple[dict[str, int], QuantPlan]],
    x: ArrayLike,
    share: float,
    *,
    width: int = WIDTH,
) -> tuple[dict[str, int], Coverage] | None:
    """The first counts, with what their plan covers, whose certificates cover at least this share of the images.

    plans: as of `term_counts`, in the order of cost: then the counts are the cheapest of these.  None where none does.
    A plan is given up as soon as too many of its images are without a certificate.

    Raises ArgumentError for a share that is not in [0, 1], else as `coverage`.

    >>> from ..net.graph import InputSpec, Node
    >>> z = Node("z", "Gemm", ("x",), {"in_features": 2, "out_features": 2}, {"weight": "w"})
    >>> graph = Graph("same", InputSpec("x", (2,)), "z", (z,), {"w": np.eye(2, dtype=np.float32)})
    >>> smallest_terms(graph, [({}, QuantPlan())], [[3.0, 1.0]], 0.99)
    ({}, Coverage(images=1, certified=1, agreeing=1))
    """
    if not 0 <= share <= 1:
        raise ArgumentError(complaint(f"share={share}", "in [0, 1]", "smallest_terms"))
    X = np.asarray(x)
    for counts, plan in plans:
        found = Coverage(0, 0, 0)
        for start in range(0, len(X), 8 * BATCH):
            part = coverage(graph, plan, X[start : start + 8 * BATCH], width=width)
            sums = (found.images + part.images, found.certified + part.certified, found.agreeing + part.agreeing)
            found = Coverage(*sums)
            if found.images - found.certified > (1 - share) * len(X):
                break
        else:
            return counts, found
    return None
