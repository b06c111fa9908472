"""The error of a quantized network, forecast from the float run alone.  A model, to first order: never a bound.

Letters: e the error at a tensor y, shape (N, ...), quantized less float; E the mean over images, of the sum over
elements, and over the model's noise; J_j the Jacobian of y by the place where the error d_j of source j enters, taken
in the float run, with the plan's weights: so that what an activation's error becomes in a weight's, E|dW d|^2, is
counted (see `secants.ORDERS`, "mirrored").

The model: e = sum of J_j d_j, d_j with a mean m_j that is known and white noise of variance sigma_j^2 about it (see
`noise`).  Means add up as vectors, noise in power:

    E|e|^2 = E|sum J_j m_j|^2 + sum_j sum_i |J_j[:, i]|^2 sigma_ji^2.

A weight, a bias, and an activation that no other error reaches err by what is known beforehand, whatever the images:
these have all mean and no noise, unless they are asked to be taken for white, too.  What remains white are the
errors of the other activations, but for elements of a channel that are equal, and err alike (see `jacobian`): sum J_j
over these first.  The model leaves out that slopes change (kinks), that errors of one tensor's other elements, and
those of two tensors, may be correlated, and that their power differs from alpha^2 / 12: `excess` measures each of these
by itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arith.blas import one_blas_thread
from ..errors import ArgumentError, complaint, instance_of
from ..net.gradient import Tape, pushforward
from ..net.graph import Graph
from ..net.op import Array, Point, Rule, Tangents
from ..net.plan import QuantPlan
from ..quant.arguments import shaped
from .accumulate import mean_square
from .jacobian import probe_rows, second_moments, unit_rows
from .noise import Noise, known_noise, noise_of
from .pair import Pair, Source, images_of, pair_of, reached_from
from .ratios import Ratio, decibels, harmonic, product, ratio_of, relative

__all__ = ["Forecast", "Model", "forecast_error", "forecast_layers", "model_of"]

Reals = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Forecast:
    """What the model says of the error at a tensor; everything but `output` is a forecast, not a bound.

    output: y of the float network, shape (N, *shape).  mean: the mean error, of the same shape; known: by source,
    E|J_j m_j|^2.  noise: by source with noise, its power at y; standard_error: that of their sum, where Jacobian norms
    were estimated by probes, 0 where they are exact.  covariances: by source with noise, that of its noise at y, shape
    (N, C, C) with C the elements of y; None with probes.
    corrected: the mean error once every layer's bias takes off the mean error of each of its channels over images
    and positions (bias correction).  ratios: by source, NSR and beta of what is quantized, by itself.
    """

    output: Reals
    mean: Reals
    known: Mapping[Source, float]
    noise: Mapping[Source, float]
    standard_error: float
    covariances: Mapping[Source, Reals] | None
    corrected: Reals
    ratios: Mapping[Source, Ratio]

    @property
    def signal(self) -> float:
        """E|y|^2."""
        return mean_square(self.output)

    @property
    def mse(self) -> float:
        """E|e|^2."""
        return mean_square(self.mean) + sum(self.noise.values())

    @property
    def sqnr_db(self) -> float:
        """10 log10 of E|y|^2 / E|e|^2: infinite without an error, else minus infinity without a signal."""
        return decibels(relative(self.mse, self.signal))

    @property
    def corrected_mse(self) -> float:
        """E|e|^2 with bias correction: noise is taken to have no mean over images that it could take off."""
        return mean_square(self.corrected) + sum(self.noise.values())

    @property
    def harmonic_db(self) -> float:
        """SQNR by the harmonic rule, as if the sources were factors of a product, and uncorrelated (see `ratios`)."""
        return decibels(harmonic(self.ratios.values()))

    @property
    def product_db(self) -> float:
        """SQNR by the exact form for a product of independent factors with the sources' ratios (see `ratios`)."""
        return decibels(product(self.ratios.values()))


# ---- the model ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Model:
    """A network linearized at its float run, and by source the value at which its error enters, and that error."""

    tape: Tape
    noises: Mapping[Source, tuple[str, Noise]]
    ratios: Mapping[Source, Ratio]


def _quantized(pair: Pair, source: Source, tape: Tape) -> tuple[Array, Callable[[], Noise]]:
    """What is quantized, as it is in the float run, and after; and the model's white noise of the difference."""
    value = pair.sources[source]
    if source.kind == "activation":
        x, way = tape.values[source.name], pair.through[source.name]
        params = {role: pair.params[name] for role, name in way.params.items()}
        after, spec = way.op.forward(way.attrs, params, [x]), way.attrs["spec"]
        step = shaped(np.asarray(params["scale"], np.float64), "scale", x.shape, spec)
        return after, lambda: noise_of(x, after, step, spec.rounding)
    x, after = pair.graph.arrays[value].astype(np.float64), pair.params[value].astype(np.float64)
    if source.kind == "bias":
        return after, lambda: known_noise(after - x)
    terms = pair.plan.weights[source.name]
    last = np.take_along_axis(terms.scales, terms.counts[None] - 1, axis=0)[0].astype(np.float64)
    step = np.asarray(terms.specs[-1].granularity.spread(last, terms.shape))
    return after, lambda: noise_of(x, after, step, terms.specs[-1].rounding)


def model_of(pair: Pair, feeds: Mapping[str, Array], at: str, *, known: bool = True) -> Model:
    """The model of what reaches the tensor `at`, for these images.

    known: whether errors that are known beforehand are taken as they are.
    """
    tape, noises, ratios = pair.run(feeds, at, ()), {}, {}
    reached = reached_from(tape, {pair.entry(source) for source in pair.sources})
    points = dict(tape.points)
    for source, value in pair.sources.items():
        if value not in tape.values:
            continue
        before = tape.values[source.name] if source.kind == "activation" else tape.values[value]
        after, white = _quantized(pair, source, tape)
        free = source.kind != "activation" or source.name not in reached
        noises[source] = value, known_noise(after - before) if known and free else white()
        if source.kind != "bias":
            ratios[source] = ratio_of(before, after)
        if source.kind != "activation":
            at_node = points[source.name]
            points[source.name] = at_node._replace(params={**at_node.params, source.kind: after})
    return Model(tape._replace(points=points), noises, ratios)


def _centred(pair: Pair, tape: Tape) -> Tape:
    """The same lines, but errors leave every Conv and Gemm without their mean over images and positions."""
    linear = {node.name for node in pair.graph.linear_nodes}

    def rule(derivative: Rule) -> Rule:
        def jvp(at: Point, v: Tangents) -> Array:
            moved = derivative.jvp(at, v)
            centred: Array = moved - moved.mean(axis=(0, *range(2, moved.ndim)), keepdims=True)
            return centred

        return derivative._replace(jvp=jvp)

    lines = [line._replace(op=replace(line.op, derivative=rule(line.op.derivative))) for line in tape.lines]
    return tape._replace(
        lines=tuple(new if new.name in linear else old for new, old in zip(lines, tape.lines, strict=True))
    )


# ---- what it says ---------------------------------------------------------------------------------------------

BATCH = 32
"""Images whose rows of the Jacobian are held at once."""

WIDEST = 1024
"""Elements of a tensor whose rows are all taken."""


def _noise_moments(
    whole: Model, part: Callable[[int], Model], probes: int, rng: np.random.Generator | None
) -> dict[Source, Reals]:
    """Second moments of each source's noise at the tensor: its covariances, or with rng those of probes.

    part: from a number to the model of the images from it on, a batch of them.
    """
    noisy = [source for source, (_, noise) in whole.noises.items() if np.any(noise.variance)]
    found: dict[Source, list[Reals]] = {source: [] for source in noisy}
    for start in range(0, len(whole.tape.output), BATCH) if noisy else ():
        model = part(start)
        output = model.tape.output
        rows = unit_rows(output) if rng is None else probe_rows(output, probes, rng)
        variances = {source: (model.noises[source][0], model.noises[source][1].variance) for source in noisy}
        for source, M in second_moments(model.tape, rows, variances).items():
            found[source].append(M)
    return {source: np.concatenate(parts) for source, parts in found.items()}


def forecast_error(
    graph: Graph,
    plan: QuantPlan,
    x: ArrayLike,
    *,
    at: str | None = None,
    known: bool = True,
    rng: np.random.Generator | None = None,
    probes: int = 8,
) -> Forecast:
    """The error at a tensor of a quantized network, forecast from its float run: a model, not a bound.

    graph, plan, x: as for `attribute_error`; some dozens of images do.  at: the name of a tensor, by default the
    output's.  known: False takes the errors of weights and of the input, too, for white noise.
    rng: None takes the exact norms of the Jacobian's columns, at tensors of up to 1,024 elements; a generator has
    them estimated by so many probes (at least 2), each a run back.

    Raises ArgumentError as `attribute_error` does, for a tensor too wide without rng, and for fewer than 2 probes.

    >>> from ..net.graph import InputSpec, Node
    >>> from ..net.plan import ActivationQuantizer
    >>> from ..quant.spec import QuantSpec
    >>> dense = {"in_features": 1, "out_features": 1}
    >>> nodes = (Node("y", "Gemm", ("x",), dense, {"weight": "v"}), Node("z", "Gemm", ("y",), dense, {"weight": "w"}))
    >>> graph = Graph("line", InputSpec("x", (1,)), "z", nodes, {"v": np.float32([[0.3]]), "w": np.float32([[2]])})
    >>> quantizers = {name: ActivationQuantizer(QuantSpec(4), np.array(0.5), np.array(0)) for name in ("x", "y")}
    >>> found = forecast_error(graph, QuantPlan(activations=quantizers), [[1.125]])
    >>> found.mean.round(3).tolist()  # that of x is known: 0.3 (1 - 1.125) 2
    [[-0.075]]
    >>> {str(source): round(power, 4) for source, power in found.noise.items()}  # 2^2 0.5^2 / 12
    {'activation y': 0.0833}
    """
    pair, feeds = pair_of(graph, plan), images_of(graph, x)
    where = at or pair.graph.output
    _checked(pair, where, rng, probes)

    def model_from(start: int, stop: int | None) -> Model:
        return model_of(pair, {name: v[start:stop] for name, v in feeds.items()}, where, known=known)

    with one_blas_thread():
        model = model_from(0, None)
        y = model.tape.output
        means = {value: noise.mean for value, noise in model.noises.values()}
        each = {s: _pushed(model.tape, {value: noise.mean}) for s, (value, noise) in model.noises.items()}
        moments = _noise_moments(model, lambda start: model_from(start, start + BATCH), probes, rng)
        corrected = _pushed(_centred(pair, model.tape), means) if means else np.zeros_like(y)
    count = 1 if rng is None else probes
    powers = {source: np.diagonal(M, axis1=1, axis2=2) / count for source, M in moments.items()}
    samples = sum(powers.values(), np.zeros((len(y), 1))) * probes
    return Forecast(
        y,
        sum(each.values(), np.zeros_like(y)),
        {source: mean_square(e) for source, e in each.items()},
        {source: float(power.sum()) / len(y) for source, power in powers.items()},
        0.0 if rng is None or not moments else float(np.sqrt(samples.var(axis=1, ddof=1).sum() / probes)) / len(y),
        moments if rng is None else None,
        corrected,
        model.ratios,
    )


def _pushed(tape: Tape, errors: Mapping[str, Array]) -> Reals:
    moved: Reals = pushforward(tape, errors)[tape.result]
    return moved


def _checked(pair: Pair, at: str, rng: np.random.Generator | None, probes: int) -> None:
    width = int(np.prod(pair.graph.shapes.get(at, ())))
    if rng is None and width > WIDEST:
        got, should = f"a tensor of {width} elements", f"at most {WIDEST}"
        raise ArgumentError(complaint(got, should, f"forecast at {at}", "pass rng, to probe it"))
    if rng is not None:
        instance_of(rng, np.random.Generator, "rng", f"forecast at {at}")
    if type(probes) is not int or probes < 2:
        raise ArgumentError(complaint(f"probes={probes!r}", "an integer of at least 2", "forecast"))


def forecast_layers(
    graph: Graph,
    plan: QuantPlan,
    x: ArrayLike,
    *,
    known: bool = True,
    rng: np.random.Generator,
    probes: int = 8,
) -> dict[str, Forecast]:
    """The forecast at the output of every Conv and Gemm, in order: how the error grows with depth.

    Arguments are those of `forecast_error`; names are those of the network with batch norms folded.  Layers without
    any noise are exact up to kinks.

    >>> from refquant.zoo import load_network
    >>> found = forecast_layers(load_network("mlp"), QuantPlan(), np.ones((1, 1, 28, 28)), rng=np.random.default_rng(0))
    >>> {name: forecast.mse for name, forecast in found.items()}
    {'gemm1': 0.0, 'gemm2': 0.0, 'gemm3': 0.0}
    """
    names = [node.name for node in pair_of(graph, plan).graph.linear_nodes]
    return {name: forecast_error(graph, plan, x, at=name, known=known, rng=rng, probes=probes) for name in names}
