"""Forward runs: right where one can check by hand, the same bytes for any threads, and plain refusals."""

import weakref
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # no stubs exist

from refquant.errors import ArgumentError, NotANumberError
from refquant.net.fold import fold_batch_norm
from refquant.net.forward import BATCH, MODES, forward
from refquant.net.graph import Graph, InputSpec, Node
from refquant.net.plan import ActivationQuantizer, QuantPlan
from refquant.quant.multiterm import MultiTerm
from refquant.quant.quantizer import fake_quantize, quantize
from refquant.quant.spec import QuantSpec
from refquant.zoo import load_data, load_network

TERNARY = QuantSpec(2, narrow=True)
EIGHT = QuantSpec(8, signed=False)


def f32(values: Any) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def gemm(name: str, tensor: str, weight: str) -> Node:
    return Node(name, "Gemm", (tensor,), {"in_features": 2, "out_features": 2}, {"weight": weight})


def residual() -> Graph:
    """x -> a -> relu r -> b; the output is b + r: r is read by a Gemm and by a skip path."""
    nodes = (gemm("a", "x", "A"), Node("r", "Relu", ("a",)), gemm("b", "r", "B"), Node("out", "Add", ("b", "r")))
    arrays = {"A": f32([[1, 0.5], [-2, 1]]), "B": f32([[3, -1], [0.25, 2]])}
    return Graph("residual", InputSpec("x", (2,)), "out", nodes, arrays)


def one_term(weight: NDArray[np.float32], scale: float) -> MultiTerm:
    codes = quantize(weight, scale, spec=TERNARY)
    return MultiTerm(codes[None], np.array([scale]), (TERNARY,), np.array(1))


def quantizer(scale: float, zero_point: int = 0) -> ActivationQuantizer:
    return ActivationQuantizer(EIGHT, np.array(scale), np.array(zero_point))


def min_max_plan(graph: Graph, x: NDArray[Any]) -> QuantPlan:
    folded = fold_batch_norm(graph)
    _, tensors = forward(folded, x, trace=True)
    weights = {
        node.name: one_term(W, float(np.abs(W).max()))
        for node in folded.linear_nodes
        for W in [folded.param(node, "weight")]
    }
    read = {tensor for node in folded.linear_nodes for tensor in node.inputs}
    ranges = {tensor: (float(tensors[tensor].min()), float(tensors[tensor].max())) for tensor in sorted(read)}
    steps = {tensor: (high - min(low, 0)) / 255 for tensor, (low, high) in ranges.items()}
    return QuantPlan(weights, {t: quantizer(step, round(-min(ranges[t][0], 0) / step)) for t, step in steps.items()})


# ---- values ---------------------------------------------------------------------------------------------------


def test_float_by_hand() -> None:
    logits, tensors = forward(residual(), [[2, 4]], trace=True)
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        "x": [[2, 4]],
        "a": [[4, 0]],
        "r": [[4, 0]],
        "b": [[12, 1]],
        "out": [[16, 1]],
    }
    assert np.array_equal(logits, tensors["out"])


def test_the_input_is_transformed() -> None:
    node = Node("y", "Relu", ("x",))
    graph = Graph("g", InputSpec("x", (1,), scale=0.5, mean=3.0, std=4.0), "y", (node,), {})
    logits, tensors = forward(graph, np.array([[30], [2]], np.uint8), trace=True)
    assert (tensors["x"].tolist(), logits.tolist()) == ([[3], [-0.5]], [[3], [0]])


def test_fake_quantizes_where_linear_nodes_read_and_nowhere_else() -> None:
    graph, x = residual(), f32([[2.2, 3.7], [0.4, 1.3]])
    plan = QuantPlan({"b": one_term(graph.arrays["B"], 3.0)}, {"r": quantizer(0.5)})
    logits, tensors = forward(graph, x, plan, "fake", trace=True)
    r = np.maximum(x @ graph.arrays["A"].T, 0)
    assert np.array_equal(tensors["r"], r)  # as the node gives it
    seen = fake_quantize(r, 0.5, spec=EIGHT)
    assert not np.array_equal(seen, r)
    expected = seen @ f32([[3, 0], [0, 3]]).T + r  # B in steps of 3, the skip path unquantized
    assert np.array_equal(logits, expected)


def test_an_empty_plan_is_the_folded_float_network() -> None:
    graph, x = load_network("resnet"), load_data("fashion-mnist").test.x[:70]
    assert np.array_equal(forward(graph, x, QuantPlan(), "fake"), forward(fold_batch_norm(graph), x))


def test_fake_is_the_same_for_a_graph_and_the_folded_graph() -> None:
    graph, x = load_network("resnet"), load_data("fashion-mnist").calibration.x[:70]
    plan = min_max_plan(graph, x)
    logits = forward(graph, x, plan, "fake")
    assert np.array_equal(logits, forward(fold_batch_norm(graph), x, plan, "fake"))
    assert not np.array_equal(logits, forward(graph, x))


def test_a_node_that_nobody_reads_and_an_input_that_is_the_output() -> None:
    graph = Graph("g", InputSpec("x", (1,)), "x", (Node("idle", "Relu", ("x",)),), {})
    assert forward(graph, [[-3]]).tolist() == [[-3]]
    assert forward(graph, [[-3]], trace=True)[1]["idle"].tolist() == [[0]]


# ---- batches and threads --------------------------------------------------------------------------------------


@pytest.mark.guarantee("Float and fake runs are the same bytes for any number of threads", kind="checked")
@pytest.mark.parametrize("mode", ["float", "fake"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_results_are_the_same_bytes_for_any_threads(name: str, mode: str) -> None:
    graph, x = load_network(name), load_data("fashion-mnist").test.x[: 3 * BATCH + 5]
    plan = min_max_plan(graph, x) if mode == "fake" else None
    first = forward(graph, x, plan, mode, workers=1).tobytes()
    for workers in (2, 3, 7, None):
        for blas in (1, 2):
            with threadpool_limits(blas, "blas"):
                assert forward(graph, x, plan, mode, workers=workers).tobytes() == first


def test_a_trace_gives_the_same_bytes_and_every_tensor() -> None:
    graph, x = load_network("cnn"), load_data("fashion-mnist").test.x[: BATCH + 3]
    logits, tensors = forward(graph, x, trace=True)
    assert list(tensors) == ["input", *(node.name for node in graph.nodes)]
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: (BATCH + 3, *shape) for name, shape in graph.shapes.items()
    }
    assert forward(graph, x).tobytes() == logits.tobytes() == tensors[graph.output].tobytes()


def test_no_images_give_no_rows() -> None:
    graph = load_network("resnet")
    logits, tensors = forward(graph, np.zeros((0, 1, 28, 28), np.uint8), trace=True)
    assert logits.shape == (0, 10)
    assert tensors["conv1"].shape == (0, 24, 28, 28)


def test_progress_counts_every_image_once() -> None:
    done: list[int] = []
    forward(residual(), np.zeros((2 * BATCH + 1, 2)), progress=done.append)
    assert done == [BATCH, BATCH, 1]


def test_a_tensor_is_freed_after_its_last_reader() -> None:
    chain = tuple(Node(f"r{i}", "Relu", (f"r{i - 1}" if i else "x",)) for i in range(5))
    graph = Graph("chain", InputSpec("x", (1,)), "r4", chain, {})
    alive: list[int] = []
    known: list[weakref.ref[Any]] = []
    run = MODES["float"](graph, None).run(np.ones((1, 1)))
    while (step := next(run, None)) is not None:
        known.append(weakref.ref(step[1]))
        del step
        alive.append(sum(reference() is not None for reference in known))
    assert alive == [1, 2, 2, 2, 2, 2]  # a tensor, and the one it is made from


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's own, where the overflow happens
def test_an_error_in_a_batch_reaches_the_caller() -> None:
    graph = residual().replace_arrays({"A": np.full((2, 2), 3e38, np.float32)})
    plan = QuantPlan(activations={"r": quantizer(0.5)})
    x = np.zeros((BATCH + 1, 2))
    x[-1] = [1e5, -1e5]  # inf - inf in the second batch
    with pytest.raises(NotANumberError):
        forward(graph, x, plan, "fake")


# ---- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((3, 3)), ArgumentError, r"x of shape \(3, 3\).*\(N, 2\)"),
        (np.zeros(2), ArgumentError, r"x of shape \(2,\)"),
        (np.zeros((1, 2, 1)), ArgumentError, r"x of shape \(1, 2, 1\)"),
        (3, ArgumentError, r"x of shape \(\)"),
        ([["a", "b"]], ArgumentError, "x of type <U1"),
        ([[True, False]], ArgumentError, "x of type bool"),
        ([[1j, 0]], ArgumentError, "x of type complex128"),
        ([[0, np.nan]], NotANumberError, "NaN in x"),
        ([[np.inf, np.nan]], NotANumberError, "NaN in x"),
        ([[0, -np.inf]], ArgumentError, "infinity in x"),
    ],
)
def test_what_is_no_stack_of_images_is_refused(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        forward(residual(), x)


X = np.zeros((1, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "int8"}, "mode='int8'.*float, fake"),
        ({"plan": QuantPlan()}, "a plan, but should be none"),
        ({"mode": "fake"}, "plan=None"),
        ({"mode": "fake", "plan": {}}, r"plan=\{\}"),
        ({"workers": 0}, "workers=0"),
        ({"workers": 1.5}, "workers=1.5"),
        ({"mode": "fake", "plan": QuantPlan({"r": one_term(np.eye(2, dtype=np.float32), 1.0)})}, "weights of r"),
        ({"mode": "fake", "plan": QuantPlan({"a": one_term(np.ones((2, 3), np.float32), 1.0)})}, r"shape \(2, 3\)"),
        ({"mode": "fake", "plan": QuantPlan(activations={"b": quantizer(1.0)})}, "activations of b.*among x, r"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        forward(residual(), X, **arguments)


def test_a_plan_for_the_unfolded_network_is_refused() -> None:
    graph = load_network("resnet")
    plan = QuantPlan(activations={"batchnorm9": quantizer(1.0)})
    with pytest.raises(ArgumentError, match="activations of batchnorm9"):
        forward(graph, np.zeros((1, 1, 28, 28)), plan, "fake")
