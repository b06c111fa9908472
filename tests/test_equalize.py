"""Cross-layer equalization: the float network stays, ranges agree, and weights by tensor gain."""

import numpy as np
import pytest

import refquant as rq
from refquant.net.graph import Graph, InputSpec, Node
from refquant.ptq.equalize import equalize, on_equalized, pairs_of
from refquant.ptq.sequential import sequential
from refquant.ptq.task import make_task

DATA = rq.load_data("fashion-mnist")


def folded(name: str) -> Graph:
    return make_task(rq.load_network(name), DATA.calibration.x[:2]).graph


@pytest.mark.guarantee(
    "Cross-layer equalization by powers of two leaves the embedded networks' outputs bit for bit", kind="checked"
)
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_the_float_network_does_not_change(name: str) -> None:
    graph, images = folded(name), DATA.test.x[:300]
    before = rq.forward(graph, images)
    after = equalize(graph)
    assert any(not np.array_equal(after.arrays[k], graph.arrays[k]) for k in graph.arrays)
    assert np.array_equal(rq.forward(after, images), before)
    real = rq.forward(equalize(graph, powers_of_two=False), images)
    assert not np.array_equal(real, before)
    # every product and every scale rounds once more: some 20 roundings a layer, amplified by cancellation to a tenth
    assert np.abs(real - before).max() < 1e-4 * np.abs(before).max()


def test_pairs() -> None:
    assert [tuple(p) for p in pairs_of(folded("cnn"))] == [("conv1", "conv2"), ("conv2", "gemm1"), ("gemm1", "gemm2")]
    found = {tuple(p) for p in pairs_of(folded("resnet"))}
    assert ("conv7", "conv8") in found  # into a depthwise convolution and out of it
    assert ("conv8", "conv9") in found
    assert not any(first == "conv1" for first, _ in found)  # the stem's output is read twice


def test_ranges_agree_where_both_can() -> None:
    graph = equalize(folded("cnn"), powers_of_two=False)
    for first, second in pairs_of(graph):
        W1, W2 = (graph.param(graph.node(n), "weight") for n in (first, second))
        r1 = np.abs(W1).reshape(len(W1), -1).max(axis=1)
        r2 = np.abs(W2.reshape(len(W2), len(W1), -1)).max(axis=(0, 2))
        live = (r1 > 0) & (r2 > 0)
        assert np.allclose(r1[live], r2[live], rtol=5e-3)


def test_weights_by_tensor_gain() -> None:
    """One channel of a small network is a thousand times the others: by tensor its rows are lost, until equalized."""
    rng = np.random.default_rng(0)
    W1, W2 = rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32)
    W1[0] *= 1024
    W2[:, 0] /= 1024
    nodes = (
        Node("a", "Gemm", ("x",), {"in_features": 6, "out_features": 4}, {"weight": "W1"}),
        Node("r", "Relu", ("a",)),
        Node("y", "Gemm", ("r",), {"in_features": 4, "out_features": 3}, {"weight": "W2"}),
    )
    graph, x = Graph("steep", InputSpec("x", (6,)), "y", nodes, {"W1": W1, "W2": W2}), rng.normal(size=(200, 6))
    reference = rq.forward(graph, x)

    def error(g: Graph) -> float:
        plan = rq.QuantPlan(
            {n.name: rq.encode_terms(g.param(n, "weight"), spec=rq.QuantSpec(4), terms=1) for n in g.linear_nodes}
        )
        return float(np.mean((rq.forward(g, x, plan, mode="fake") - reference) ** 2) / np.mean(reference**2))

    assert error(graph) > 0.2
    assert error(equalize(graph)) < 0.05


def test_what_is_not_homogeneous_or_dead_is_left_alone() -> None:
    W = np.eye(2, dtype=np.float32)
    for op, wanted in (("Relu6", 0), ("Relu", 1)):
        nodes = (
            Node("a", "Gemm", ("x",), {"in_features": 2, "out_features": 2}, {"weight": "W1"}),
            Node("r", op, ("a",)),
            Node("y", "Gemm", ("r",), {"in_features": 2, "out_features": 2}, {"weight": "W2"}),
        )
        dead = np.array([[0, 0], [0, 5]], np.float32)
        graph = Graph("g", InputSpec("x", (2,)), "y", nodes, {"W1": dead, "W2": W})
        assert len(pairs_of(graph)) == wanted
        assert equalize(graph).arrays["W1"][0].tolist() == [0, 0]
        assert equalize(graph).arrays["W2"][0].tolist() == [1, 0]


def test_a_plan_for_the_equalized_network_serves_the_original() -> None:
    task = make_task(rq.load_network("cnn"), DATA.calibration.x[:64], bits=(4, 8))
    plan = on_equalized(task, lambda other: sequential(other, "gpfq"))
    images = DATA.calibration.x[512:768]
    logits, reference = rq.forward(task.graph, images, plan, mode="fake"), rq.forward(task.graph, images)
    assert np.array_equal(logits, rq.forward(equalize(task.graph), images, plan, mode="fake"))
    assert np.mean(logits.argmax(axis=1) == reference.argmax(axis=1)) > 0.95
