"""Folded networks compute the same: exactly where float32 is exact, closely on the embedded one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from refquant.errors import ArgumentError
from refquant.net.fold import fold_batch_norm
from refquant.net.forward import forward
from refquant.net.graph import Graph, InputSpec, Node
from refquant.zoo import load_data, load_network

Arrays = dict[str, NDArray[np.float32]]


def f32(values: Any) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def norm(name: str, tensor: str) -> Node:
    params = {role: f"{name}.{role}" for role in ("gamma", "beta", "mean", "var")}
    return Node(name, "BatchNorm", (tensor,), {"channels": 4, "eps": 1.0}, params)


def norm_arrays(name: str) -> Arrays:
    """gamma / sqrt(var + eps) is 2, -3, 1, 5: folding integers gives integers."""
    values = {"gamma": [2, -6, 3, 20], "beta": [1, 2, 3, 4], "mean": [-1, 0, 2, 7], "var": [0, 3, 8, 15]}
    return {f"{name}.{role}": f32(v) for role, v in values.items()}


CONV: Mapping[str, Any] = {"in_channels": 4, "out_channels": 4, "kernel": (2, 2), "stride": (1, 1), "groups": 2}
GEMM: Mapping[str, Any] = {"in_features": 4, "out_features": 4}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("op", ["Conv", "Gemm"])
def test_folding_integers_changes_no_value(op: str, bias: bool) -> None:
    rng = np.random.default_rng(5)
    attrs, weight, size = {"Conv": (CONV, (4, 2, 2, 2), (4, 5, 5)), "Gemm": (GEMM, (4, 4), (4,))}[op]
    arrays = {"w": rng.integers(-8, 9, weight).astype(np.float32), **norm_arrays("n")}
    if bias:
        arrays["b"] = rng.integers(-8, 9, 4).astype(np.float32)
    linear = Node("y", op, ("x",), attrs, {"weight": "w", **({"bias": "b"} if bias else {})})
    graph = Graph("g", InputSpec("x", size), "r", (linear, norm("n", "y"), Node("r", "Relu", ("n",))), arrays)
    folded = fold_batch_norm(graph)
    assert [(node.name, node.inputs) for node in folded.nodes] == [("y", ("x",)), ("r", ("y",))]
    assert sorted(folded.arrays) == ["y.bias", "y.weight"]
    x = rng.integers(-8, 9, (3, *size))
    assert forward(graph, x).any()
    assert np.array_equal(forward(folded, x), forward(graph, x))


def linear_then(*nodes: Node, output: str, arrays: Arrays | None = None) -> Graph:
    first = Node("y", "Gemm", ("x",), GEMM, {"weight": "w"})
    return Graph(
        "g", InputSpec("x", (4,)), output, (first, *nodes), {"w": np.eye(4, dtype=np.float32), **(arrays or {})}
    )


def test_a_batch_norm_at_the_end_hands_the_output_over() -> None:
    graph = linear_then(norm("n", "y"), output="n", arrays=norm_arrays("n"))
    folded = fold_batch_norm(graph)
    assert folded.output == "y"
    assert np.array_equal(forward(folded, np.eye(4)), forward(graph, np.eye(4)))


@pytest.mark.parametrize(
    "graph",
    [
        linear_then(norm("n", "y"), Node("a", "Add", ("n", "y")), output="a", arrays=norm_arrays("n")),
        linear_then(norm("n", "y"), output="y", arrays=norm_arrays("n")),
        linear_then(Node("r", "Relu", ("y",)), norm("n", "r"), output="n", arrays=norm_arrays("n")),
        linear_then(output="y"),
    ],
    ids=["read by another", "is the output", "behind a Relu", "none"],
)
def test_what_cannot_be_folded_stays(graph: Graph) -> None:
    assert fold_batch_norm(graph) is graph


def test_of_two_batch_norms_in_a_row_one_is_folded() -> None:
    """Then the other follows a linear node, and folds the next time: the result has none, and the same values."""
    two = linear_then(norm("n", "y"), norm("m", "n"), output="m", arrays=norm_arrays("n") | norm_arrays("m"))
    once = fold_batch_norm(two)
    assert [node.name for node in once.nodes] == ["y", "m"]
    twice = fold_batch_norm(once)
    assert [node.name for node in twice.nodes] == ["y"]
    x = np.arange(8).reshape(2, 4)
    assert np.array_equal(forward(two, x), forward(twice, x))


def test_an_array_that_two_nodes_share_is_folded_for_one() -> None:
    other = Node("z", "Gemm", ("x",), GEMM, {"weight": "w"})
    graph = linear_then(norm("n", "y"), other, Node("a", "Add", ("n", "z")), output="a", arrays=norm_arrays("n"))
    folded = fold_batch_norm(graph)
    assert np.array_equal(folded.arrays["w"], graph.arrays["w"])
    x = np.arange(8).reshape(2, 4)
    assert np.array_equal(forward(folded, x), forward(graph, x))


def test_a_name_that_another_node_uses_is_not_taken() -> None:
    other = Node("z", "Gemm", ("x",), GEMM, {"weight": "y.weight"})
    arrays = norm_arrays("n") | {"y.weight": 3 * np.eye(4, dtype=np.float32)}
    graph = linear_then(norm("n", "y"), other, Node("a", "Add", ("n", "z")), output="a", arrays=arrays)
    x = np.arange(8).reshape(2, 4)
    assert np.array_equal(forward(fold_batch_norm(graph), x), forward(graph, x))


def test_a_fold_that_overflows_is_refused() -> None:
    arrays = norm_arrays("n") | {"n.gamma": np.full(4, 3e38, np.float32)}
    graph = linear_then(norm("n", "y"), output="n", arrays=arrays)
    wide = graph.replace_arrays({"w": 1e10 * np.eye(4, dtype=np.float32)})
    with pytest.raises(ArgumentError, match="infinity"):
        fold_batch_norm(wide)


def test_the_folded_resnet_sees_the_same_classes() -> None:
    graph, x = load_network("resnet"), load_data("fashion-mnist").test.x[:2000]
    folded = fold_batch_norm(graph)
    assert [node.op for node in folded.nodes] == [node.op for node in graph.nodes if node.op != "BatchNorm"]
    assert len(folded.linear_nodes) == 11
    before, after = forward(graph, x), forward(folded, x)
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
    assert np.array_equal(after.argmax(axis=1), before.argmax(axis=1))
    assert folded.reference_logits is not None
    assert np.abs(after[:8] - folded.reference_logits).max() <= 2e-5
