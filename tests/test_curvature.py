"""Curvature: traces, pair terms, theorems and indices against brute force; each paper's claim on the zoo, as it is."""

from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import refquant as rq
from refquant import ArgumentError, QuantPlan
from refquant.net.curvature import gauss_newton_product, hessian_product
from refquant.net.gradient import Tape, pullback, run
from refquant.net.graph import Graph, InputSpec, Node
from refquant.net.loss import cross_entropy
from refquant.net.plan import ActivationQuantizer
from refquant.theory import curvature
from refquant.theory.curvature import (
    Trace,
    hawq_scores,
    layer_traces,
    theorem_ratio,
    uniform_perturbation,
    weight_errors,
)
from refquant.theory.interactions import Losses, Scatter, additivity, losses_of, pair_terms
from refquant.theory.pair import Source, images_of, pair_of
from refquant.theory.scales import Quadratic, quadratic_at, scale_loss, separability

Reals = NDArray[np.float64]


def dense(I: int, O: int) -> dict[str, Any]:
    return {"in_features": I, "out_features": O}


def small(rng: np.random.Generator) -> Graph:
    """A Conv, a pool and two Gemms, with ReLUs: 10 inputs become 3 logits."""
    kernel = {"kernel": [2, 2], "stride": [1, 1], "padding": [0, 0], "groups": 1}
    nodes = (
        Node("c", "Conv", ("x",), {"in_channels": 1, "out_channels": 2, **kernel}, {"weight": "C"}),
        Node("r", "Relu", ("c",)),
        Node("p", "MaxPool", ("r",), {"kernel": [2, 2], "stride": [1, 1], "padding": [0, 0]}),
        Node("f", "Flatten", ("p",)),
        Node("g", "Gemm", ("f",), dense(8, 4), {"weight": "G", "bias": "b"}),
        Node("s", "Relu", ("g",)),
        Node("z", "Gemm", ("s",), dense(4, 3), {"weight": "Z"}),
    )
    shapes = {"C": (2, 1, 2, 2), "G": (4, 8), "b": (4,), "Z": (3, 4)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return Graph("small", InputSpec("x", (1, 4, 4)), "z", nodes, arrays)


@cache
def problem() -> tuple[Graph, Reals, NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    return small(rng), rng.normal(size=(6, 1, 4, 4)), rng.integers(0, 3, 6)


def float_tape() -> Tape:
    graph, x, _ = problem()
    return pair_of(graph, QuantPlan()).run(images_of(graph, x), "z", ())


@cache
def zoo(name: str, bits: int, count: int = 64) -> Losses:
    """Losses of a network of the zoo, weights and activations at so many bits, on test images."""
    data, graph = rq.load_data("fashion-mnist"), rq.load_network(name)
    plan = rq.quantize_network(graph, data.calibration.x[:32], bits=(bits, bits), method="absmax")
    return losses_of(graph, plan, data.test.x[:count], labels(count))


def labels(count: int) -> NDArray[Any]:
    """The classes of the first test images."""
    return np.asarray(rq.load_data("fashion-mnist").test.y)[:count]


# ---- traces ---------------------------------------------------------------------------------------------------


@pytest.mark.guarantee(
    "Gauss-Newton traces by layer are those of the matrix, and Fisher's: the mean over all labels of squared gradients",
    kind="checked",
)
def test_traces_are_those_of_the_matrices() -> None:
    graph, x, y = problem()
    found, tape = layer_traces(graph, x, y), float_tape()
    loss = cross_entropy(tape.output, y)
    p = np.exp(tape.output) / np.exp(tape.output).sum(axis=1, keepdims=True)
    for name in ("c", "g", "z"):
        array = f"{name}:weight"
        shape = tape.values[array].shape
        units = np.eye(int(np.prod(shape))).reshape(-1, *shape)
        brute = sum(float(np.sum(e * gauss_newton_product(tape, loss, {array: e})[array])) for e in units)
        fisher = empirical = 0.0
        for n in range(len(x)):
            only = (np.arange(len(x)) == n)[:, None]
            for label in range(3):
                u = (p - np.eye(3)[label]) * only
                square = float(np.sum(pullback(tape, u, [array])[array] ** 2)) / len(x)
                fisher += p[n, label] * square
                empirical += square * (label == y[n])
        assert abs(found[name].gauss_newton / brute - 1) <= 1e-12
        assert abs(found[name].gauss_newton / fisher - 1) <= 1e-12
        assert abs(found[name].empirical_fisher / empirical - 1) <= 1e-12
        assert abs(found[name].empirical_fisher / found[name].gauss_newton - 1) > 0.05  # something else
        assert found[name].parameters == len(units)


def test_many_images_go_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x, y = problem()
    whole = layer_traces(graph, x, y)
    monkeypatch.setattr(curvature, "BATCH", 4)
    for name, trace in layer_traces(graph, x, y).items():
        assert abs(trace.gauss_newton / whole[name].gauss_newton - 1) <= 1e-13


@pytest.mark.guarantee(
    "By one layer's weights of a ReLU network the Gauss-Newton matrix is the Hessian; by two layers' it is not",
    kind="checked",
)
def test_gauss_newton_is_the_hessian_of_one_layer() -> None:
    graph, x, y = problem()
    tape, rng = float_tape(), np.random.default_rng(1)
    loss = cross_entropy(tape.output, y)
    own, feeds = pair_of(graph, QuantPlan()).graph, images_of(graph, x)
    arrays = ("c:weight", "g:weight", "z:weight")
    at = {a: tape.values[a] for a in arrays}

    def gradient(values: Any) -> Any:
        moved = run(own, feeds, {a: values[a] for a in arrays})
        return pullback(moved, cross_entropy(moved.output, y).cotangent, arrays)

    for a in arrays:
        for b in arrays:
            v = {c: rng.normal(size=at[c].shape) * (c == b) for c in arrays}
            H = hessian_product(gradient, at, v, 1e-6)[a]
            G = gauss_newton_product(tape, loss, v)[a]
            off = np.abs(H - G).max() / np.abs(H).max()
            assert off <= 1e-6 if a == b else off > 1e-2, (a, b)


@pytest.mark.guarantee("HAWQ's score is the mean of the quadratic form over directions of the error", kind="sampled")
def test_hawq_scores_are_means_over_directions() -> None:
    graph, x, y = problem()
    traces, tape, rng = layer_traces(graph, x, y), float_tape(), np.random.default_rng(2)
    loss = cross_entropy(tape.output, y)
    for name in ("c", "g", "z"):
        array = f"{name}:weight"
        forms = []
        for _ in range(300):
            v = rng.normal(size=tape.values[array].shape)
            v *= 0.01 / np.linalg.norm(v)
            forms.append(float(np.sum(v * gauss_newton_product(tape, loss, {array: v})[array])) / 2)
        score = hawq_scores(traces, {name: np.full(tape.values[array].shape, 0.01 / tape.values[array].size ** 0.5)})
        assert abs(np.mean(forms) - score[name]) <= 4 * np.std(forms) / 300**0.5


# ---- pairs and sets -------------------------------------------------------------------------------------------


def fine(bits: int) -> Losses:
    graph, x, y = problem()
    weights = {
        n.name: rq.encode_terms(graph.param(n, "weight"), spec=rq.QuantSpec(bits), terms=1) for n in graph.linear_nodes
    }
    return losses_of(graph, QuantPlan(weights), x, y)


def test_pair_terms_by_their_definition() -> None:
    losses = fine(3)
    found, zero = pair_terms(losses), losses([])
    assert [source.name for source in found.sources] == ["c", "g", "z"]
    for i, j in combinations(range(3), 2):
        a, b = found.sources[i], found.sources[j]
        expected = losses([a, b]) - losses([a]) - losses([b]) + zero
        assert found.measured[i, j] == found.measured[j, i] == pytest.approx(expected, abs=1e-14)
        both = found.forecast(found.measured, [a, b], pairs=True)
        assert both == pytest.approx(losses([a, b]) - zero, abs=1e-14)
        assert found.forecast(found.measured, [a, b], pairs=False) == pytest.approx(both - expected, abs=1e-14)


@pytest.mark.guarantee(
    "Loss increases of single layers tend to their second-order forecasts as errors shrink", kind="checked"
)
def test_single_terms_in_the_limit() -> None:
    off = []
    for bits in (4, 8, 12):
        found = pair_terms(fine(bits))
        off.append(float(np.abs(np.diag(found.measured) / np.diag(found.model) - 1).max()))
    assert off[0] > off[1] > off[2]
    assert off[2] <= 0.01


def test_pair_terms_of_activations() -> None:
    losses = zoo("mlp", 8)
    found = pair_terms(losses, "activation")
    assert {source.kind for source in found.sources} == {"activation"}
    assert np.allclose(found.model, found.model.T)
    last = len(found.sources) - 1  # what the last layer reads: its error is what the model says, up to second order
    assert abs(found.model[last, last] / found.measured[last, last] - 1) <= 0.05


@pytest.mark.guarantee(
    "Loss increases of single layers do not add up at 2 bits: the sum is off by more than a tenth",
    kind="checked",
)
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_additivity_is_measured(name: str) -> None:
    losses = zoo(name, 2)
    weights = [source for source in losses.sources if source.kind == "weight"]
    sets = [c for n in range(2, len(weights) + 1) for c in combinations(weights, n)]
    found, zero = additivity(losses, sets), losses([])
    assert found.residual > 0.1
    assert found.together[-1] == losses(weights) - zero
    assert found.sums[-1] == pytest.approx(sum(losses([source]) - zero for source in weights), abs=1e-14)


def test_scatter_by_hand() -> None:
    found = Scatter(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]))
    assert found.slope == 2.0
    assert found.rank_correlation == pytest.approx(1.0)
    assert found.residual == pytest.approx(0.5)
    nothing = Scatter(np.zeros(2), np.zeros(2))
    assert np.isnan([nothing.residual, nothing.rank_correlation, nothing.slope]).all()


# ---- BRECQ's theorem ------------------------------------------------------------------------------------------


@pytest.mark.guarantee(
    "BRECQ's theorem 3.1: the ratio tends to 1 with the perturbation, and is off by more than a fifth in a draw of 0.3 "
    "of the largest weight",
    kind="checked",
)
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_the_theorems_ratio(name: str) -> None:
    graph, x = rq.load_network(name), rq.load_data("fashion-mnist").test.x[:24]
    ratios = {
        size: np.array(theorem_ratio(graph, x, uniform_perturbation(graph, size, np.random.default_rng(3))))
        for size in (1e-8, 1e-6, 0.3)
    }
    assert abs(ratios[1e-8][0] - 1) <= 1e-6  # KL, quadratic in it, is lost in rounding there
    assert abs(ratios[1e-6][1] - 1) <= 1e-3
    assert np.abs(ratios[1e-6] - 1).max() <= 0.02  # background of the cnn lies within that of a ReLU's kink
    assert abs(ratios[0.3][0] - 1) > 0.2


def test_nothing_moves() -> None:
    graph, x, _ = problem()
    assert np.isnan(theorem_ratio(graph, x, {})).all()
    assert weight_errors(graph, QuantPlan()) == {}


# ---- scales ---------------------------------------------------------------------------------------------------


def test_quadratics_are_exact() -> None:
    rng = np.random.default_rng(4)
    A = rng.normal(size=(5, 5))
    H, g, at = A + A.T, rng.normal(size=5), rng.normal(size=5)
    found = quadratic_at(lambda s: float(s @ H @ s / 2 + g @ s), at, 0.25)
    assert np.abs(found.hessian - H).max() <= 1e-12
    assert np.abs(found.gradient - (H @ at + g)).max() <= 1e-12
    wrong = quadratic_at(lambda s: float(s @ H @ s / 2 + g @ s + s[0] ** 4), at, 0.25)
    assert abs(wrong.hessian[0, 0] - H[0, 0] - 12 * at[0] ** 2) <= 0.25**2 * 2 + 1e-12
    assert np.abs(wrong.hessian - H)[1:, 1:].max() <= 1e-10


def test_numbers_of_a_quadratic_by_hand() -> None:
    q = Quadratic(np.array([1.0, 0.0, 0.0]), np.array([[4.0, 2.0, 0.0], [2.0, 1.0, 0.5], [0.0, 0.5, 1.0]]))
    assert q.coupling.tolist() == [[1, 1, 0], [1, 1, 0.5], [0, 0.5, 1]]
    assert (q.coupling_at(1, 1), q.coupling_at(2)) == (0.75, 0.0)
    assert q.off_diagonal_share == pytest.approx(8.5 / 26.5)
    assert q.gaussian_curvature == pytest.approx(-1 / 4)
    scaled = np.diag([10.0, 1, 1]) @ q.hessian @ np.diag([10.0, 1, 1])
    assert np.allclose(Quadratic(q.gradient, scaled).coupling, q.coupling)  # whatever the unit of a scale
    assert np.isnan(Quadratic(np.zeros(1), np.ones((1, 1))).coupling_at(1))


@pytest.mark.guarantee(
    "The separability index is the variance that no sum of functions of one variable has, 0 for such a sum",
    kind="sampled",
)
def test_separability() -> None:
    rng = np.random.default_rng(5)
    zero, one = np.zeros(2), np.ones(2)
    product = separability(lambda s: float(s[0] * s[1]), zero, one, samples=20_000, rng=rng)
    assert abs(product.interaction - 1 / 144) <= 4 * product.standard_error <= 1 / 144
    assert abs(product.share - 1 / 7) <= 0.03  # Var = 7 / 144
    apart = separability(lambda s: float(np.exp(s[0]) + s[1] ** 3), zero, one, samples=200, rng=rng)
    assert abs(apart.interaction) <= 1e-12
    shifted = separability(lambda s: 100 + float(s[0] * s[1]), zero, one, samples=20_000, rng=rng)
    assert shifted.standard_error <= 2 * product.standard_error  # the mean is taken off


@pytest.mark.guarantee(
    "LAPQ's geometry on the cnn's activations, 24 images, scales half to all of absmax: at 2 bits the loss is more "
    "curved and less separable than at 4",
    kind="checked",
)
def test_fewer_bits_curve_and_couple_scales() -> None:
    data, graph = rq.load_data("fashion-mnist"), rq.load_network("cnn")
    found = {}
    for bits in (2, 4):
        plan = rq.quantize_network(graph, data.calibration.x[:32], bits=(8, bits), method="absmax")
        tensors, f = scale_loss(graph, QuantPlan(activations=plan.activations), data.test.x[:24], labels(24))
        m = len(tensors)
        q = quadratic_at(f, np.full(m, 0.7), 0.15)
        box = separability(f, np.full(m, 0.5), np.full(m, 1.0), samples=12, rng=np.random.default_rng(6))
        found[bits] = np.trace(np.abs(q.hessian)), box.interaction
    assert found[2][0] > 5 * found[4][0]
    assert found[2][1] > 5 * abs(found[4][1])


# ---- what is refused ------------------------------------------------------------------------------------------


def test_bad_arguments_are_refused() -> None:
    graph, x, y = problem()
    with pytest.raises(ArgumentError, match="one for each of 6"):
        layer_traces(graph, x, [*y, 0])
    with pytest.raises(ArgumentError, match="labels"):
        losses_of(graph, QuantPlan(), x, y[:3])
    with pytest.raises(ArgumentError, match="no sets"):
        additivity(fine(4), [])
    with pytest.raises(ArgumentError, match="without activations"):
        scale_loss(graph, QuantPlan(), x, y)
    with pytest.raises(ArgumentError, match="nobody"):
        theorem_ratio(graph, x, {"nobody": np.zeros(1)})
    with pytest.raises(ArgumentError, match="samples=1"):
        separability(lambda s: 0.0, np.zeros(2), np.ones(2), samples=1, rng=np.random.default_rng(0))
    wide = Graph("image", InputSpec("x", (1, 4, 4)), "c", graph.nodes[:1], {"C": graph.arrays["C"]})
    with pytest.raises(ArgumentError, match="list of logits"):
        layer_traces(wide, x, y)
    _, f = scale_loss(*_planned(), x, y)
    with pytest.raises(ArgumentError, match="factors"):
        f(np.array([-1.0]))


def _planned() -> tuple[Graph, QuantPlan]:
    graph, _, _ = problem()
    quantizer = ActivationQuantizer(rq.QuantSpec(8), np.array(0.1), np.array(0))
    return graph, QuantPlan(activations={"s": quantizer})


def test_a_wrong_trace_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = curvature._softmax
    monkeypatch.setattr(curvature, "_softmax", lambda z: right(1.01 * z))
    with pytest.raises(AssertionError):
        test_traces_are_those_of_the_matrices()


def test_traces_are_plain_numbers() -> None:
    graph, x, y = problem()
    assert all(type(t.gauss_newton) is float and isinstance(t, Trace) for t in layer_traces(graph, x, y).values())
    assert Source("c", "weight") in fine(4).sources
