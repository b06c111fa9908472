"""Biases that a plan puts in place of the network's own: in every mode, in gradients, in files, and refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import refquant as rq
from refquant import ArgumentError, QuantPlan
from refquant.conform.golden_network import golden_network
from refquant.net.fold import fold_batch_norm, with_biases
from refquant.net.gradient import run
from refquant.net.graph import Graph, InputSpec, Node
from refquant.net.plan_json import plan_from_json, plan_to_json
from refquant.net.wiring import through_plan

GEMM = {"in_features": 2, "out_features": 2}


def f32(values: Any) -> Any:
    return np.asarray(values, np.float32)


def shared() -> Graph:
    """a has no bias; b and c share one."""
    nodes = (
        Node("a", "Gemm", ("x",), GEMM, {"weight": "A"}),
        Node("b", "Gemm", ("a",), GEMM, {"weight": "B", "bias": "s"}),
        Node("c", "Gemm", ("b",), GEMM, {"weight": "c.bias", "bias": "s"}),
    )
    arrays = {"A": f32([[1, 2], [0, 1]]), "B": f32([[1, 0], [1, 1]]), "c.bias": f32([[2, 0], [0, 3]]), "s": f32([5, 6])}
    return Graph("shared", InputSpec("x", (2,)), "c", nodes, arrays)


BIASES = {"a": f32([1, -1]), "c": f32([0.5, 0.25])}


def test_fake_by_hand() -> None:
    x = f32([[1, 1]])
    assert rq.forward(shared(), x, QuantPlan(), mode="fake").tolist() == [[2 * 8 + 5, 3 * (3 + 1 + 6) + 6]]
    _, seen = rq.forward(shared(), x, QuantPlan(biases=BIASES), mode="fake", trace=True)
    assert {name: tensor.tolist() for name, tensor in seen.items()} == {
        "x": [[1, 1]],
        "a": [[4, 0]],
        "b": [[9, 10]],  # its own bias, which it shared
        "c": [[18.5, 30.25]],
    }


def test_every_bias_gets_an_array_of_its_own() -> None:
    graph = with_biases(shared(), BIASES)
    assert {node.name: node.params["bias"] for node in graph.nodes} == {"a": "a.bias", "b": "s", "c": "c.bias_"}
    assert set(graph.arrays) == {"A", "B", "c.bias", "s", "a.bias", "c.bias_"}
    assert set(with_biases(graph, {"b": f32([0, 0])}).arrays) == {"A", "B", "c.bias", "b.bias", "a.bias", "c.bias_"}
    assert with_biases(graph, {}) is graph


def test_what_was_measured_with_the_old_biases_is_left_out() -> None:
    graph = rq.load_network("mlp")
    assert graph.reference_logits is not None
    other = with_biases(graph, {"gemm3": np.zeros(10, np.float32)})
    assert other.reference_logits is None
    assert "test_accuracy" not in other.notes


@pytest.mark.guarantee("Integer networks take the plan's biases, by both interpreters", kind="checked", clauses="N2")
def test_integer_networks_take_the_plans_biases() -> None:
    graph, data = rq.load_network("cnn"), rq.load_data("fashion-mnist")
    plan = rq.quantize_network(graph, data.calibration.x[:16], integer=rq.IntegerSpec())
    rng = np.random.default_rng(0)
    biases = {
        node.name: (graph.param(node, "bias") + rng.normal(0, 0.3, graph.shapes[node.name][0])).astype(np.float32)
        for node in graph.linear_nodes[1:]
    }
    moved, x = replace(plan, biases=biases), data.test.x[:3]
    codes, trace = rq.forward(graph, x, moved, mode="integer", trace=True)
    golden = golden_network(graph, moved, x)
    assert all(np.array_equal(trace[name], golden[name]) for name in trace)
    assert not np.array_equal(codes, rq.forward(graph, x, plan, mode="integer"))
    assert not np.array_equal(codes, golden_network(graph, plan, x)[graph.output])  # the second one would notice
    replaced = with_biases(graph, biases)
    assert np.array_equal(codes, rq.forward(replaced, x, plan, mode="integer"))
    fake = rq.forward(graph, x, moved, mode="fake")
    edge = plan.activations[graph.output]
    assert np.array_equal(fake, ((codes - edge.zero_point) * edge.scale).astype(np.float32))


def test_a_run_through_a_plan_has_its_biases() -> None:
    graph, x = with_biases(shared(), BIASES), f32([[1, 1]])
    plan = QuantPlan(biases={"a": f32([2, 3])})
    through, params = through_plan(graph, plan)
    assert np.array_equal(run(graph, {"x": x}, params, through=through).output, rq.forward(graph, x, plan, mode="fake"))
    for name, got in (("a", "0 slots"), ("b", "2 slots")):
        with pytest.raises(ArgumentError, match=f"{got} with the array of bias of {name}"):
            through_plan(shared(), QuantPlan(biases={name: f32([0, 0])}))


def test_files_keep_biases() -> None:
    plan = QuantPlan(biases={"a": f32([0.1, -3e-30])}, activations={})
    again = plan_from_json(plan_to_json(plan)).biases["a"]
    assert again.dtype == np.float32
    assert again.tobytes() == plan.biases["a"].tobytes()


@pytest.mark.parametrize(
    ("biases", "words"),
    [
        ({"d": f32([0, 0])}, "biases of d"),
        ({"x": f32([0, 0])}, "biases of x"),
        ({"a": f32([0])}, r"shape \(1,\)"),
        ({"a": np.zeros(2)}, "float64"),
        ({"a": f32([0, np.nan])}, "finite"),
    ],
    ids=["unknown", "no layer", "another shape", "another type", "NaN"],
)
def test_bad_biases_are_refused(biases: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        rq.forward(shared(), f32([[1, 1]]), QuantPlan(biases=biases), mode="fake")


def test_folding_comes_first() -> None:
    graph, x = rq.load_network("resnet"), rq.load_data("fashion-mnist").test.x[:4]
    folded = fold_batch_norm(graph)
    own = {node.name: folded.param(node, "bias") for node in folded.linear_nodes}
    assert np.array_equal(rq.forward(graph, x, QuantPlan(biases=own), mode="fake"), rq.forward(folded, x))
