"""The error of a quantized network as a sum of one contribution a source: an identity, no model.

Letters: e the error of the output, quantized less float, shape (N, ...); u_j the contribution of source j, of the same
shape; E the mean over images of the sum over the output's elements; K_ij = E u_i u_j.

Every source injects an error at one tensor: a weight dW x^ at its node's output, a bias db there, a quantizer
Q(x^) - x^ at what its readers see.  Secants (see `secants`) carry each injected error to the output by itself; as they
are linear and exact, the parts add up: sum u_j = e.  So MSE = E|e|^2 = sum K_ij, share_j = E u_j e / E|e|^2 sums to 1
and may be negative (a source that cancels others), and what is off the diagonal of K is interaction.

A weight of T terms W^ = P_T, P_t the sum of its first t, errs by (P_1 - W) + (P_2 - P_1) + ... + (P_T - P_{T-1}): the
part of term 1 is the error of the sum cut after one term, that of each later term the correction which it brings; so
the parts of the first t terms add up to what the error of the weight cut after t terms becomes by these secants, those
of the whole plan.  In a run with the weight so cut the secants behind it are others, and its contribution too.

Proofs: proofs/07_accumulation.py.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arith.blas import one_blas_thread
from ..net.gradient import Tape, pullback, pushforward
from ..net.graph import Graph, macs
from ..net.op import Array
from ..net.plan import QuantPlan
from .pair import Pair, Source, images_of, pair_of, reached_from
from .secants import secant_tape

__all__ = ["ROUTES", "Attribution", "Injection", "attribute_error", "injections", "mean_square"]

Reals = NDArray[np.float64]

BATCH = 64
"""Images whose tensors are held at once."""


def mean_square(e: Reals) -> float:
    """E|e|^2: the mean over images of the sum of squares of the rest.

    >>> mean_square(np.array([[3.0, 4.0], [0.0, 1.0]]))
    13.0
    """
    return float(np.sum(e * e) / len(e))


@dataclass(frozen=True, eq=False)
class Attribution:
    """What each source of quantization error contributes to the error of the output.

    error: e, shape (N, *output shape).  contributions: u_j by source, of the same shape, in the order of the network.
    terms: by the name of a node whose weight has T > 1 terms, the parts of its contribution, shape (T, N, *output).
    alone: E|e|^2 of the network with this source alone quantized; all_but: with all others.  These are measured, by
    runs of their own: they need not add up to anything.
    """

    error: Reals
    contributions: Mapping[Source, Reals]
    terms: Mapping[str, Reals]
    alone: Mapping[Source, float]
    all_but: Mapping[Source, float]

    @property
    def mse(self) -> float:
        """E|e|^2."""
        return mean_square(self.error)

    @property
    def gram(self) -> Reals:
        """K, shape (sources, sources), in the order of `contributions`; its sum is the MSE."""
        u = np.array([c.ravel() for c in self.contributions.values()]).reshape(len(self.contributions), self.error.size)
        return np.asarray(u @ u.T / len(self.error))

    @property
    def interaction(self) -> float:
        """The sum of K off its diagonal: MSE less what the contributions would have, were they orthogonal."""
        K = self.gram
        return float(K.sum() - np.trace(K))

    @property
    def shares(self) -> dict[Source, float]:
        """E u_j e / E|e|^2, which sum to 1; NaN where the error is 0 and shares are undefined."""
        total = np.sum(self.error**2)
        parts = {source: np.sum(u * self.error) for source, u in self.contributions.items()}
        return {source: float(part / total) if total else float("nan") for source, part in parts.items()}

    @property
    def residual(self) -> float:
        """|sum of contributions - e| / |e|, Euclidean over all images; absolute where e = 0.  0 but for roundings."""
        rest = sum(self.contributions.values(), np.zeros_like(self.error)) - self.error
        scale = float(np.linalg.norm(self.error))
        return float(np.linalg.norm(rest)) / (scale or 1.0)


# ---- what is injected, and where ------------------------------------------------------------------------------


class Injection(NamedTuple):
    """An error that enters the network at a tensor: the tensor, and the error there."""

    place: str
    error: Reals


Key = tuple[Source, int]
"""A source, and the number of its part from 0: of a weight, the term."""


def _weight_parts(pair: Pair, source: Source) -> list[Reals]:
    """P_1 - W, P_2 - P_1, ...; the last takes the rounding of the whole sum to float32 with it."""
    array = pair.sources[source]
    W, whole = pair.graph.arrays[array].astype(np.float64), pair.params[array].astype(np.float64)
    terms = pair.plan.weights[source.name]
    sums = [W, *(terms.partial_sums()[:-1] if terms.terms > 1 else ()), whole]
    return [after - before for before, after in pairwise(sums)]


def injections(pair: Pair, tape: Tape, moved: Tape) -> dict[Key, Injection]:
    """What each source injects, in parts where it has some; tape: of secants, moved: the quantized run.

    Sources that the output does not depend on are left out.
    """
    found: dict[Key, Injection] = {}
    for source, value in pair.sources.items():
        if value not in tape.values:
            continue
        if source.kind == "activation":
            found[source, 0] = Injection(value, moved.values[value] - moved.points[value].inputs[0])
            continue
        line = next(line for line in tape.lines if line.name == source.name)
        if source.kind == "weight":
            parts = _weight_parts(pair, source)
        else:
            parts = [pair.params[value].astype(np.float64) - pair.graph.arrays[value]]
        for t, part in enumerate(parts):
            error = line.op.derivative.jvp(tape.points[line.name], {source.kind: part})
            found[source, t] = Injection(source.name, error)
    return found


# ---- carried to the output ------------------------------------------------------------------------------------


def _forward(tape: Tape, injected: Mapping[Key, Injection]) -> dict[Key, Reals]:
    """One run forward an injection."""
    return {key: pushforward(tape, {at: error})[tape.result] for key, (at, error) in injected.items()}


def _backward(tape: Tape, injected: Mapping[Key, Injection]) -> dict[Key, Reals]:
    """One run backward an element of the output: u = the sum of what an error there is worth times the error."""
    N, *shape = tape.output.shape
    places = {at for at, _ in injected.values()}
    found = {key: np.empty((N, int(np.prod(shape)))) for key in injected}
    for i in range(int(np.prod(shape))):
        worth = np.zeros((N, int(np.prod(shape))))
        worth[:, i] = 1
        worth_at = pullback(tape, worth.reshape(tape.output.shape), places)
        for key, (at, error) in injected.items():
            found[key][:, i] = np.sum((worth_at[at] * error).reshape(N, -1), axis=1)
    return {key: u.reshape(tape.output.shape) for key, u in found.items()}


ROUTES: dict[str, Callable[[Tape, Mapping[Key, Injection]], dict[Key, Reals]]] = {
    "forward": _forward,
    "backward": _backward,
}
"""Two ways to the same contributions, by the `jvp` and by the `vjp` of every line."""


def cheaper_route(pair: Pair, tape: Tape, injected: Mapping[Key, Injection]) -> str:
    """The route of fewer multiply-accumulates: downstream of each injection, or of the network once an output."""
    work = macs(pair.graph)

    def downstream(places: Collection[str]) -> int:
        reached = reached_from(tape, places)
        return sum(work.get(line.name, 0) for line in tape.lines if reached.intersection(line.sources.values()))

    places = [at for at, _ in injected.values()]
    backward = tape.output[0].size * downstream(set(places))
    return "forward" if sum(downstream([at]) for at in places) <= backward else "backward"


# ---- the doors ------------------------------------------------------------------------------------------------


def _measured(pair: Pair, tape: Tape, moved: Tape, at: str) -> tuple[dict[Source, float], dict[Source, float]]:
    """Sums over images of |e|^2 with each source alone, and with all others; only what the source reaches is run."""
    alone: dict[Source, float] = {}
    all_but: dict[Source, float] = {}
    there = [source for source, value in pair.sources.items() if value in tape.values]
    for source in there:
        reached = reached_from(tape, [pair.entry(source)])
        kept = [name for name in pair.graph.shapes if name in tape.values and name not in reached]
        others = [other for other in there if other != source]
        for sums, quantized, run in ((alone, [source], tape), (all_but, others, moved)):
            output = pair.run({name: run.values[name] for name in kept}, at, quantized).output
            sums[source] = float(np.sum((output - tape.output) ** 2))
    return alone, all_but


class _Batch(NamedTuple):
    """What one batch of images says: e, the contributions in parts, and the sums of |e|^2 measured."""

    error: Reals
    parts: dict[Key, Reals]
    alone: dict[Source, float]
    all_but: dict[Source, float]


def _attributed(pair: Pair, feeds: Mapping[str, Array], order: str, at: str) -> _Batch:
    tape, moved = pair.run(feeds, at, ()), pair.run(feeds, at, pair.sources)
    secants = secant_tape(pair.graph, tape, moved, order)
    injected = injections(pair, secants, moved)
    parts = ROUTES[cheaper_route(pair, secants, injected)](secants, injected)
    return _Batch(moved.output - tape.output, parts, *_measured(pair, tape, moved, at))


def attribute_error(
    graph: Graph, plan: QuantPlan, x: ArrayLike, *, order: str = "perturbed", at: str | None = None
) -> Attribution:
    """The error of a quantized network at its output, as the sum of what each source contributes to it.

    graph: batch norms folded or not (they are folded).  plan: of any kind, integer-only too.  x: images, in the units
    of the graph's input entry, at least one.  order: "perturbed" or "mirrored" (see `secants.ORDERS`); both add up to
    the same error.  at: the name of a tensor, by default the output's: the error there is attributed.

    Float and quantized network are both run in float64, so `error` is that of `forward(mode="fake")` up to float32
    rounding, except where that moves a value next to a tie over it.

    Raises ArgumentError for a plan of another network, an unknown order or tensor, and images that do not fit.

    >>> from ..net.graph import InputSpec, Node
    >>> from ..net.plan import ActivationQuantizer
    >>> from ..quant.spec import QuantSpec
    >>> y = Node("y", "Gemm", ("x",), {"in_features": 1, "out_features": 1}, {"weight": "w", "bias": "b"})
    >>> arrays = {"w": np.float32([[2]]), "b": np.float32([1])}
    >>> plan = QuantPlan(
    ...     activations={"x": ActivationQuantizer(QuantSpec(4), np.array(0.5), np.array(0))},
    ...     biases={"y": np.float32([1.5])},
    ... )
    >>> found = attribute_error(Graph("line", InputSpec("x", (1,)), "y", (y,), arrays), plan, [[0.375], [1.0]])
    >>> {str(source): u.tolist() for source, u in found.contributions.items()}
    {'activation x': [[0.25], [0.0]], 'bias y': [[0.5], [0.5]]}
    >>> found.error.tolist(), found.mse, found.interaction
    ([[0.75], [0.5]], 0.40625, 0.125)
    """
    pair, feeds = pair_of(graph, plan), images_of(graph, x)
    N, where = len(feeds[graph.input.name]), at or pair.graph.output
    with one_blas_thread():
        batches = [
            _attributed(pair, {name: v[i : i + BATCH] for name, v in feeds.items()}, order, where)
            for i in range(0, N, BATCH)
        ]
    parts = {key: np.concatenate([batch.parts[key] for batch in batches]) for key in batches[0].parts}
    of: dict[Source, list[Reals]] = {}
    for (source, _), u in parts.items():
        of.setdefault(source, []).append(u)
    return Attribution(
        np.concatenate([batch.error for batch in batches]),
        {source: np.sum(some, axis=0) for source, some in of.items()},
        {source.name: np.array(some) for source, some in of.items() if len(some) > 1},
        {source: sum(batch.alone[source] for batch in batches) / N for source in of},
        {source: sum(batch.all_but[source] for batch in batches) / N for source in of},
    )
