"""Runs, pullbacks and pushforwards of graphs: parts of them, what is refused, training, and products with Hessians."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import refquant as rq
from refquant.errors import ArgumentError
from refquant.net.curvature import gauss_newton_product, hessian_product
from refquant.net.fold import fold_batch_norm
from refquant.net.gradient import Tape, pullback, pushforward, run, running_moments, trained
from refquant.net.graph import Graph, InputSpec, Node
from refquant.net.loss import Loss, cross_entropy, divergence, squared_error
from refquant.net.op import Rule
from refquant.net.ops import OPS
from refquant.net.ops_quantize import FAKE_QUANTIZE
from refquant.net.optimize import sgd
from refquant.net.plan import ActivationQuantizer, QuantPlan
from refquant.net.program import transform
from refquant.net.wiring import Through, lines_of, through_plan

Reals = NDArray[np.float64]


def images(graph: Graph, count: int, dtype: Any = np.float64) -> Any:
    return transform(graph.input, rq.load_data("fashion-mnist").calibration.x[:count]).astype(dtype)


def gemm(name: str, source: str, weight: str, I: int, O: int, bias: str = "") -> Node:
    params = {"weight": weight, **({"bias": bias} if bias else {})}
    return Node(name, "Gemm", (source,), {"in_features": I, "out_features": O}, params)


def diamond() -> Graph:
    """x -> a; a -> b, c with one shared weight; b + c -> d; d twice -> e."""
    nodes = (
        gemm("a", "x", "A", 2, 2, "bias"),
        gemm("b", "a", "S", 2, 2),
        gemm("c", "a", "S", 2, 2),
        Node("d", "Add", ("b", "c")),
        Node("e", "Add", ("d", "d")),
    )
    arrays = {"A": [[1, 2], [3, 4]], "S": [[1, -1], [0, 2]], "bias": [5, 6]}
    held = {name: np.array(a, np.float32) for name, a in arrays.items()}
    return Graph("diamond", InputSpec("x", (2,)), "e", nodes, held)


X = np.array([[1.0, 10.0], [-2.0, 3.0], [0.0, 1.0]])


# ---- values ---------------------------------------------------------------------------------------------------


def exact_network() -> Graph:
    """A convolution and a Gemm with small integer weights: float32 computes it exactly, in any order."""
    rng = np.random.default_rng(0)
    conv = {"in_channels": 2, "out_channels": 3, "kernel": [3, 3], "stride": [1, 1], "padding": [1, 1]}
    nodes = (
        Node("conv", "Conv", ("x",), conv, {"weight": "w", "bias": "b"}),
        Node("relu", "Relu", ("conv",)),
        Node("flat", "Flatten", ("relu",)),
        gemm("out", "flat", "v", 48, 4),
    )
    arrays = {"w": rng.integers(-3, 4, (3, 2, 3, 3)), "b": rng.integers(-3, 4, 3), "v": rng.integers(-3, 4, (4, 48))}
    return Graph("exact", InputSpec("x", (2, 4, 4)), "out", nodes, {n: a.astype(np.float32) for n, a in arrays.items()})


@pytest.mark.guarantee("A run through a plan's quantizers is the fake-quantized network", kind="checked")
def test_a_run_through_a_plan_is_forward_with_it() -> None:
    graph, rng = exact_network(), np.random.default_rng(1)
    x = rng.integers(-8, 9, (6, 2, 4, 4)).astype(np.float32) / 4
    plan = QuantPlan(
        {
            name: rq.encode_terms(graph.param(graph.node(name), "weight"), spec=rq.QuantSpec(2), terms=2)
            for name in ("conv", "out")
        },
        {
            "x": ActivationQuantizer(rq.QuantSpec(3), np.array(0.5), np.array(1)),
            "flat": ActivationQuantizer(rq.QuantSpec(4, signed=False), np.array(2.0), np.array(0)),
        },
    )
    through, params = through_plan(graph, plan)
    tape = run(graph, {"x": x}, params, through=through)
    expected, trace = rq.forward(graph, x, plan, mode="fake", trace=True)
    assert np.array_equal(tape.values["relu"], trace["relu"])
    assert np.array_equal(tape.output, expected)
    assert not np.array_equal(expected, rq.forward(graph, x))
    with pytest.raises(ArgumentError, match="integer-only"):
        through_plan(graph, replace(plan, integer=rq.IntegerSpec()))


def test_two_quantizers_and_one_everywhere() -> None:
    spec = rq.QuantSpec(3)
    way = Through(FAKE_QUANTIZE, {"spec": spec}, {"scale": "s", "zero_point": "z"})
    params = {"s": np.array(2.0), "z": np.array(0)}
    graph = diamond()
    plain = run(graph, {"x": X}, params, through={"a": way})
    assert [line.name for line in plain.lines] == ["a", "a:read", "b", "c", "d", "e"]
    assert plain.points["b"].inputs[0] is plain.values["a:read"]
    only_gemms = run(graph, {"x": X}, params, through={"d": way})
    assert "d:read" not in only_gemms.values  # no Conv or Gemm reads it
    everywhere = run(graph, {"x": X}, params, through={"d": replace(way, everywhere=True)})
    assert np.array_equal(everywhere.output, 2 * rq.fake_quantize(everywhere.values["d"], 2.0, spec=spec))
    end = run(graph, {"x": X}, params, output="d", through={"d": replace(way, everywhere=True), "S": way})
    assert end.result == "d:read"
    assert np.array_equal(end.points["b"].params["weight"], rq.fake_quantize(graph.arrays["S"], 2.0, spec=spec))


def test_any_op_of_one_input_may_stand_between() -> None:
    tape = run(diamond(), {"x": X}, through={"a": Through(OPS["Relu"]), "S": Through(OPS["Relu"])})
    assert np.array_equal(tape.values["b"], np.maximum(tape.values["a"], 0) @ np.maximum(diamond().arrays["S"], 0).T)
    back = pullback(tape, np.ones((3, 2)), ["a", "S"])
    assert not back["a"][tape.values["a"] <= 0].any()
    assert not back["S"][tape.values["S"] <= 0].any()
    assert back["S"][tape.values["S"] > 0].all()


# ---- derivatives of parts -------------------------------------------------------------------------------------


def dense(tape: Tape, source: str, target: str) -> tuple[Reals, Reals]:
    """The Jacobian of a value by another, shape (target, source), once by tangents and once by cotangents."""
    a, b = tape.values[source], tape.values[target]
    columns = [pushforward(tape, {source: v.reshape(a.shape)}, [target])[target].ravel() for v in np.eye(a.size)]
    rows = [pullback(tape, {target: u.reshape(b.shape)}, [source])[source].ravel() for u in np.eye(b.size)]
    return np.array(columns).T, np.array(rows)


@pytest.mark.parametrize(
    ("source", "target"), [("x", "e"), ("a", "e"), ("x", "d"), ("A", "e"), ("S", "e"), ("bias", "b"), ("b", "c")]
)
def test_between_any_two_values(source: str, target: str) -> None:
    """A graph of lines and integers: differences over steps of 1 are exact, where the weights enter once."""
    tape = run(diamond(), {"x": X})
    by_tangents, by_cotangents = dense(tape, source, target)
    assert np.array_equal(by_tangents, by_cotangents)
    if source in ("b", "a"):
        expected = {"a": np.kron(np.eye(3), 4 * diamond().arrays["S"]), "b": np.zeros((6, 6))}[source]
    else:
        value = tape.values[source]
        units = np.eye(value.size).reshape(-1, *value.shape)
        inside = source != "x"
        moved = [run(diamond(), {"x": X if inside else X + e}, {source: value + e} if inside else {}) for e in units]
        expected = np.array([(m.values[target] - tape.values[target]).ravel() for m in moved]).T
    assert np.array_equal(by_tangents, expected)


def test_tensors_inside_take_tangents_and_cotangents() -> None:
    tape, rng = run(diamond(), {"x": X}), np.random.default_rng(0)
    v = {name: rng.integers(-3, 4, tape.values[name].shape).astype(float) for name in ("x", "b", "d", "S")}
    u = {name: rng.integers(-3, 4, tape.values[name].shape).astype(float) for name in ("e", "d", "a")}
    forth, back = pushforward(tape, v, list(u)), pullback(tape, u, list(v))
    assert sum((forth[n] * u[n]).sum() for n in u) == sum((back[n] * v[n]).sum() for n in v)
    apart = [pushforward(tape, {name: t}, list(u)) for name, t in v.items()]
    assert all(np.array_equal(forth[n], sum(part[n] for part in apart)) for n in u)
    assert np.array_equal(pullback(tape, {"d": v["d"]}, ["d"])["d"], v["d"])  # the identity
    assert np.array_equal(pushforward(tape, {"d": v["d"]}, ["d"])["d"], v["d"])


def test_a_part_is_a_part_of_the_whole() -> None:
    graph = fold_batch_norm(rq.load_network("resnet"))
    whole = run(graph, {graph.input.name: images(graph, 3)})
    start, end = "relu3", "relu5"  # the strided block: two ways from its input
    part = run(graph, {start: whole.values[start]}, output=end)
    assert 5 < len(part.lines) < len(whole.lines)
    assert np.array_equal(part.output, whole.values[end])
    u = np.random.default_rng(0).normal(size=part.output.shape)
    names = [start, "conv4.weight", "conv6.bias"]
    ours, theirs = pullback(part, u, names), pullback(whole, {end: u}, names)
    assert all(np.array_equal(ours[name], theirs[name]) for name in names)
    v = {start: np.ones_like(part.values[start])}
    assert np.array_equal(pushforward(part, v)[end], pushforward(whole, v, [end])[end])


def test_a_part_with_two_inputs() -> None:
    graph = diamond()
    part = run(graph, {"b": X, "c": 2 * X})
    assert np.array_equal(part.output, 6 * X)
    back = pullback(part, X, ["b", "c"])
    assert np.array_equal(back["b"], 2 * X)
    assert np.array_equal(back["c"], 2 * X)


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_images_do_not_mix(name: str) -> None:
    graph = rq.load_network(name)
    tape = run(graph, {graph.input.name: images(graph, 3)})
    u = np.zeros_like(tape.output)
    u[1] = 1
    back = pullback(tape, u, [graph.input.name, "relu2"])
    assert all(a[1].any() and not a[0].any() and not a[2].any() for a in back.values())


def test_what_leads_nowhere_has_derivative_0() -> None:
    tape = run(diamond(), {"x": X})
    assert not pullback(tape, {"b": X}, ["c"])["c"].any()
    assert not pushforward(tape, {"b": X}, ["c", "A"])["A"].any()
    assert not pullback(tape, {}, ["S"])["S"].any()
    assert pullback(tape, X, []) == {}


def test_nothing_is_changed_in_place() -> None:
    graph = rq.load_network("cnn")
    tape = run(graph, {graph.input.name: images(graph, 2)})
    before = {name: value.copy() for name, value in tape.values.items()}
    u = np.ones_like(tape.output)
    first = pullback(tape, u, list(tape.values))
    copies = {name: value.copy() for name, value in first.items()}
    second = pullback(tape, u, list(tape.values))
    pushforward(tape, tape.values)
    assert all(np.array_equal(tape.values[name], before[name]) for name in before)
    assert all(
        np.array_equal(first[name], copies[name]) and np.array_equal(second[name], copies[name]) for name in copies
    )


# ---- what is refused ------------------------------------------------------------------------------------------

WAY = Through(FAKE_QUANTIZE, {"spec": rq.QuantSpec(3)}, {"scale": "s", "zero_point": "z"})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: run(g, {}), "no tensor|none"),
        (lambda g: run(g, {"q": X}), "q"),
        (lambda g: run(g, {"x": X}, output="q"), "q"),
        (lambda g: run(g, {"b": X}), "also depends on x"),
        (lambda g: run(g, {"x": X[:, :1]}), r"shape \(3, 1\)"),
        (lambda g: run(g, {"b": X, "c": X[:2]}), r"shape \(2, 2\)"),
        (lambda g: run(g, {"x": np.ones((3, 2), int)}), "int64"),
        (lambda g: run(g, {"x": X}, {"q": X}), "params q"),
        (lambda g: run(g, {"x": X}, {"A": X}), r"shape \(3, 2\)"),
        (lambda g: run(g, {"x": X}, through={"a": WAY}), "no value s"),
        (lambda g: run(g, {"x": X}, through={"q": WAY}), "q"),
        (lambda g: run(g, {"x": X}, through={"a": replace(WAY, params={"scale": "s"})}), "params scale"),
        (lambda g: run(g, {"x": X}, through={"a": replace(WAY, attrs={})}), "no attribute spec"),
        (lambda g: run(g, {"x": X}, through={"a": Through(OPS["Add"])}), "2 inputs"),
        (lambda g: run(g, {"x": X}, through={"a": replace(WAY, params={"scale": "s", "zero_point": "b"})}), "params b"),
        (lambda g: run(g, {"x": X.astype(np.float16)}), "float16"),
        (lambda g: pullback(run(g, {"x": X}), X, ["q"]), "q"),
        (lambda g: pullback(run(g, {"x": X}), X[:1], ["A"]), r"shape \(1, 2\)"),
        (lambda g: pullback(run(g, {"x": X}, output="b"), {"e": X}, ["A"]), "e"),
        (lambda g: pushforward(run(g, {"x": X}), {"A": X}), r"shape \(3, 2\)"),
        (lambda g: lines_of(replace(g, nodes=(gemm("A", "x", "A", 2, 2), *g.nodes)), ["x"], "e"), "one name"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[Graph], object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call(diamond())


# ---- training -------------------------------------------------------------------------------------------------


def test_moments_of_batch_norms_follow_the_batch() -> None:
    graph, x = rq.load_network("resnet"), images(rq.load_network("resnet"), 8)
    tape = run(graph, {graph.input.name: x}, training=True)
    moments = running_moments(tape, momentum=0.25)
    assert set(moments) == set(graph.arrays) - set(trained(graph))
    seen = tape.values["conv1"]
    mean, var = seen.mean(axis=(0, 2, 3)), seen.var(axis=(0, 2, 3), ddof=1)
    for name, new in {"batchnorm1.mean": mean, "batchnorm1.var": var}.items():
        expected = 0.75 * graph.arrays[name].astype(np.float64) + 0.25 * new
        assert np.allclose(moments[name], expected, rtol=1e-9, atol=0)  # sums of 6,272 squares: 1e-12
    spread = np.sqrt(seen.var(axis=(0, 2, 3)) / (seen.var(axis=(0, 2, 3)) + graph.node("batchnorm1").attrs["eps"]))
    normal = tape.values["batchnorm1"] - graph.arrays["batchnorm1.beta"][:, None, None]
    size = np.abs(graph.arrays["batchnorm1.gamma"])
    assert np.allclose(normal.std(axis=(0, 2, 3)), size * spread, rtol=1e-9, atol=0)
    assert running_moments(run(graph, {graph.input.name: x})) == {}


def test_a_few_steps_of_training_lower_the_loss() -> None:
    """From random weights of variance 2 / inputs, and batch norms that do nothing."""
    graph, data = rq.load_network("resnet"), rq.load_data("fashion-mnist").calibration
    assert data.y is not None
    rng = np.random.default_rng(0)
    params = {name: a.copy() for name, a in graph.arrays.items()}
    for name, a in params.items():
        if name.endswith("weight"):
            a[...] = rng.normal(size=a.shape) * np.sqrt(2 / a[0].size)
        else:
            a[...] = name.endswith(("gamma", "var"))
    x, rule, losses = images(graph, 64, np.float32), sgd(momentum=0.9), []
    weights = {name: params[name] for name in trained(graph)}
    state = rule.init(weights)
    for _ in range(10):
        tape = run(graph, {graph.input.name: x}, params, training=True)
        loss = cross_entropy(tape.output, data.y[:64])
        losses.append(loss.value)
        weights, state = rule.step(weights, pullback(tape, loss.cotangent, trained(graph)), state, 0.1)
        params |= weights | running_moments(tape)
    assert losses[-1] < losses[0] / 2
    assert all(a.dtype == np.float32 for a in params.values())
    assert state.steps == 10
    graph.replace_arrays(params)  # sound


# ---- products with Hessians -----------------------------------------------------------------------------------


def tiny() -> tuple[Graph, Reals]:
    rng = np.random.default_rng(2)
    nodes = (gemm("a", "x", "A", 3, 4, "b"), Node("r", "Relu", ("a",)), gemm("z", "r", "C", 4, 3))
    arrays = {"A": rng.normal(size=(4, 3)), "b": rng.normal(size=4), "C": rng.normal(size=(3, 4))}
    graph = Graph("tiny", InputSpec("x", (3,)), "z", nodes, {n: a.astype(np.float32) for n, a in arrays.items()})
    return graph, rng.normal(size=(5, 3))


LOSSES: dict[str, Callable[[Reals], Loss]] = {
    "cross entropy": lambda z: cross_entropy(z, [0, 1, 2, 0, 1]),
    "squared error": lambda z: squared_error(z, np.ones((5, 3))),
    "divergence": lambda z: divergence(z, np.arange(15.0).reshape(5, 3) % 4),
}


def dense_gauss_newton(tape: Tape, kind: str, names: list[str]) -> Reals:
    """J^T S J by its definition, with S written down."""
    J = np.hstack([dense(tape, name, "z")[0] for name in names])
    S = np.zeros((15, 15))
    for n, z in enumerate(tape.output):
        p = np.exp(z) / np.exp(z).sum()
        here = slice(3 * n, 3 * n + 3)
        S[here, here] = 2 * np.eye(3) / 15 if kind == "squared error" else (np.diag(p) - np.outer(p, p)) / 5
    return np.asarray(J.T @ S @ J)


def stacked(parts: dict[str, Any], names: list[str]) -> Reals:
    return np.concatenate([parts[name].ravel() for name in names])


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("fault", [1.0, 2.001 / 2])
@pytest.mark.guarantee("Gauss-Newton products are those with the dense matrix, to rounding", kind="sampled")
def test_gauss_newton_products(kind: str, fault: float) -> None:
    graph, x = tiny()
    tape, names = run(graph, {"x": x}), ["A", "b", "C"]
    G = fault * dense_gauss_newton(tape, kind, names)
    # entries are sums of at most 15 * 15 * 20 products: 4,500 roundings of the sum of magnitudes, below 1e2
    tolerance = 4500 * 2.0**-53 * 1e2
    loss, found = LOSSES[kind](tape.output), []
    for e in np.eye(len(G)):
        parts = np.split(e, np.cumsum([tape.values[name].size for name in names])[:-1])
        v = {name: part.reshape(tape.values[name].shape) for name, part in zip(names, parts, strict=True)}
        found.append(stacked(gauss_newton_product(tape, loss, v), names))
    assert (np.abs(np.array(found) - G).max() <= tolerance) == (fault == 1)
    if fault == 1:
        assert np.linalg.eigvalsh(G).min() >= -tolerance
        assert np.abs(G).max() > 0.01


@pytest.mark.parametrize("kind", LOSSES)
def test_hessians_by_differences(kind: str) -> None:
    """In the last layer the outputs are linear, so there H = G; and everywhere H is symmetric."""
    graph, x = tiny()
    rng = np.random.default_rng(3)

    def gradient(params: dict[str, Any]) -> dict[str, Any]:
        tape = run(graph, {"x": x}, params)
        return pullback(tape, LOSSES[kind](tape.output).cotangent, list(params))

    at = {name: graph.arrays[name].astype(np.float64) for name in ("A", "b", "C")}
    tape = run(graph, {"x": x})
    v = {"C": rng.normal(size=(3, 4))}
    exact = gauss_newton_product(tape, LOSSES[kind](tape.output), v)["C"]
    # h = (3 u)^(1/3), about 7e-6, times max|at| / max|v|, about 1: h^2 / 6 |third derivative|, and u / h
    assert np.abs(hessian_product(gradient, at, v)["C"] - exact).max() <= 1e-8 * max(1, np.abs(x).max()) ** 4
    a, b = ({name: rng.normal(size=w.shape) for name, w in at.items()} for _ in range(2))
    names = list(at)
    left = stacked(hessian_product(gradient, at, a), names) @ stacked(b, names)
    right = stacked(hessian_product(gradient, at, b), names) @ stacked(a, names)
    assert abs(left - right) <= 1e-6 * abs(left)
    assert np.abs(stacked(gauss_newton_product(tape, LOSSES[kind](tape.output), a), names)).max() > 0


def test_a_difference_along_nothing_is_nothing() -> None:
    H = hessian_product(lambda values: {"w": 3 * values["w"]}, {"w": np.zeros(2)}, {"w": np.zeros(2)})
    assert H["w"].tolist() == [0, 0]


def test_a_wrong_rule_of_an_op_shows_in_the_whole() -> None:
    """The dense Jacobian both ways, with a rule of Relu whose two sides do not match."""
    graph, x = tiny()
    tape = run(graph, {"x": x})
    good = OPS["Relu"].derivative
    bad = replace(OPS["Relu"], derivative=Rule(good.vjp, lambda at, v: 2.001 / 2 * good.jvp(at, v)))
    lines = tuple(line._replace(op=bad) if line.name == "r" else line for line in tape.lines)
    right, wrong = dense(tape, "A", "z"), dense(tape._replace(lines=lines), "A", "z")
    assert np.abs(right[0] - right[1]).max() < 1e-13
    assert np.abs(wrong[0] - wrong[1]).max() > 1e-4
