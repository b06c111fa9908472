"""What methods share: the task, the walk from layer to layer, minibatches, and the door's refusals."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

import refquant as rq
from refquant.net.fold import fold_batch_norm
from refquant.net.graph import Graph, InputSpec, Node
from refquant.ptq.methods import ENCODINGS, METHODS
from refquant.ptq.task import CALIBRATION_IMAGES, MADE_FROM, Task, make_task, minibatches, walk
from refquant.quant.multiterm import MultiTerm, sound

DATA = rq.load_data("fashion-mnist")


def task_of(name: str, images: int = 70, **options: Any) -> Task:
    return make_task(rq.load_network(name), DATA.calibration.x[:images], **options)


def test_a_task_holds_the_folded_network_and_the_first_images() -> None:
    task = make_task(rq.load_network("resnet"), DATA.calibration.x, labels=DATA.calibration.y)
    assert len(task.images) == CALIBRATION_IMAGES
    assert task.labels is not None
    assert len(task.labels) == CALIBRATION_IMAGES
    folded = fold_batch_norm(rq.load_network("resnet"))
    assert np.array_equal(rq.forward(task.graph, task.images[:9]), rq.forward(folded, task.images[:9]))
    assert np.array_equal(task.trace["gemm1"], rq.forward(folded, task.images))
    assert set(task.activations) == {t for node in folded.linear_nodes for t in node.inputs}


def test_a_changed_task_keeps_what_does_not_depend_on_the_change() -> None:
    task = task_of("mlp", bits=(3, 4))
    for kept in (task.changed(budget=2.0, labels=None), task.changed(terms={"gemm1": 2}, rng=np.random.default_rng(1))):
        assert kept.trace is task.trace
        assert kept.activations is task.activations
    finer = task.changed(bits=(3, 8))
    assert finer.trace is task.trace
    assert {q.spec.bits for q in finer.activations.values()} == {8}
    fewer = task.changed(images=task.images[:9])
    assert np.array_equal(fewer.trace["gemm3"], make_task(task.graph, task.images[:9]).trace["gemm3"])
    none = task.changed(activations={}, budget=2.0)
    assert (none.activations, none.budget, task.budget) == ({}, 2.0, None)
    assert none.changed(budget=3.0).activations == {}


def test_what_a_changed_task_keeps_depends_on_no_other_field() -> None:
    """Each field changed alone, against a task made anew: what `MADE_FROM` does not name changes nothing."""
    task = task_of("mlp", images=16, labels=np.arange(16) % 10)
    others: dict[str, Any] = {
        "graph": make_task(
            rq.load_network("mlp").replace_arrays({"gemm1.bias": np.ones(256, np.float32)}), task.images
        ).graph,
        "images": task.images[:5],
        "labels": None,
        "bits": (2, 5),
        "granularity": rq.PerTensor(),
        "profile": "onnx@21",
        "observer": "percentile",
        "budget": 2.0,
        "terms": {"gemm1": 2},
        "starts": {"gemm1": task.encode(task.graph.node("gemm1"))},
        "rng": np.random.default_rng(3),
        "progress": print,
    }
    assert set(others) == {field.name for field in fields(Task)}
    assert set().union(*MADE_FROM.values()) <= set(others)
    for name, value in others.items():
        changed, anew = task.changed(**{name: value}), replace(task, **{name: value})
        assert [(t, q.spec, float(q.scale), int(q.zero_point)) for t, q in changed.activations.items()] == [
            (t, q.spec, float(q.scale), int(q.zero_point)) for t, q in anew.activations.items()
        ], name
        assert all(np.array_equal(changed.trace[tensor], x) for tensor, x in anew.trace.items()), name


def test_the_walk_shows_each_layer_what_forward_computes() -> None:
    """X is the float trace, X_hat the fake trace of the plan that comes out, as the layer reads it."""
    for name in ("mlp", "cnn", "resnet"):
        task = task_of(name, bits=(3, 4))
        seen: dict[str, Any] = {}

        def layer(node: Node, X: Any, X_hat: Any, task: Task = task, seen: dict[str, Any] = seen) -> Any:
            seen[node.name] = X, X_hat
            return task.encode(node), task.bias(node) + np.float32(0.01)

        plan = walk(task, layer)
        assert list(seen) == [node.name for node in task.graph.linear_nodes]
        _, trace = rq.forward(rq.load_network(name), task.images, plan, mode="fake", trace=True)
        for node in task.graph.linear_nodes:
            X, X_hat = seen[node.name]
            tensor = node.inputs[0]
            assert np.array_equal(X, task.trace[tensor])
            assert np.array_equal(X_hat, plan.activation(tensor, trace[tensor]))
            assert not np.array_equal(X, X_hat)


def test_encodings_have_the_terms_that_the_task_says() -> None:
    node = task_of("mlp").graph.node("gemm3")
    counts = np.arange(10) % 3 + 1
    sums = task_of("mlp", bits=(2, 8)).encode(node)
    assert sums.terms == 1
    assert isinstance(sums, MultiTerm)
    base = task_of("mlp", bits=(2, 8))
    task = Task(base.graph, base.images, bits=(2, 8), terms={"gemm3": counts, "gemm1": 2})
    assert np.array_equal(task.encode(node).counts, counts)
    assert task.encode(task.graph.node("gemm1")).counts.tolist() == [2] * 256
    assert task.encode(task.graph.node("gemm2")).terms == 1
    W = task.weight(node)
    errors = [((s.decode() - W) ** 2).sum(axis=1) for s in (sums, task.encode(node))]
    assert np.array_equal(errors[0] == errors[1], counts == 1)
    assert np.all(errors[1] <= errors[0])


@pytest.mark.parametrize("method", ["bias-corrected", "equalized", "gpfq"])
def test_directed_rounding_is_encoded_term_after_term(method: str) -> None:
    """By methods that start from `encode`, with a budget and without."""
    rng = np.random.default_rng(4)
    y = Node("y", "Gemm", ("x",), {"in_features": 12, "out_features": 8}, {"weight": "w"})
    arrays = {"w": rng.normal(size=(8, 12)).astype(np.float32)}
    graph, x = Graph("one", InputSpec("x", (12,)), "y", (y,), arrays), rng.normal(size=(16, 12))
    for budget in (None, 1.5):
        plan = rq.quantize_network(graph, x, method=method, bits=(3, 8), profile="seed-floor@1", budget=budget)
        assert plan.weights["y"].specs[0].rounding == "floor"
        assert sound(plan.weights["y"], method) is plan.weights["y"]


def test_minibatches_are_epochs_without_repetition() -> None:
    batches = list(minibatches(task_of("mlp", 10), 3, 7))
    assert [len(batch) for batch in batches] == [3] * 7
    for epoch in (batches[:3], batches[3:6]):
        assert len(set(np.concatenate(epoch).tolist())) == 9
    assert [b.tolist() for b in minibatches(task_of("mlp", 10), 3, 7)] == [b.tolist() for b in batches]
    assert [b.tolist() for b in minibatches(task_of("mlp", 10, seed=1), 3, 7)] != [b.tolist() for b in batches]
    assert [sorted(b.tolist()) for b in minibatches(task_of("mlp", 4), 9, 2)] == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": (1, 8)}, "weight bits 1"),
        ({"bits": (None, 8)}, "weight bits None"),
        ({"bits": (4, 17)}, "activation bits 17"),
        ({"bits": 4}, "bits=4, but should be"),
        ({"bits": (4,)}, "bits of weights, bits of activations"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": "x"}, "seed='x'"),
        ({"observer": "eyes"}, "observer"),
        ({"images": 0}, "no calibration images"),
        ({"labels": [1]}, "labels"),
        ({"labels": np.zeros(70)}, "labels of type float64"),
        ({"profile": "seed"}, "seed"),
    ],
    ids=str,
)
def test_bad_tasks_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(rq.ArgumentError, match=words):
        assert task_of("mlp", **options).weight_spec


def test_a_name_in_a_networks_place_is_refused() -> None:
    with pytest.raises(rq.ArgumentError, match="of type Graph"):
        rq.quantize_network("mlp", DATA.calibration.x[:4])  # type: ignore[arg-type]  # that is the fault


def test_a_network_with_nothing_to_quantize_is_refused() -> None:
    graph = Graph("positive", InputSpec("x", (2,)), "y", (Node("y", "Relu", ("x",)),), {})
    for method in METHODS:
        with pytest.raises(rq.ArgumentError, match="at least one Conv or Gemm"):
            rq.quantize_network(graph, np.ones((4, 2)), method=method)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "magic"}, f"one of {', '.join(METHODS)}"),
        ({"budget": 0.9}, "budget=0.9"),
        ({"budget": "2"}, "budget='2'"),
        ({"method": "gpfq", "resume": "somewhere"}, "resume with method='gpfq'"),
        ({"integer": rq.IntegerSpec(), "budget": 2.0}, "budget=2.0"),
        ({"integer": rq.IntegerSpec(), "bits": (4, None)}, "activation bits None"),
    ],
    ids=str,
)
def test_the_door_refuses(options: dict[str, Any], words: str) -> None:
    with pytest.raises(rq.ArgumentError, match=words):
        rq.quantize_network(rq.load_network("mlp"), DATA.calibration.x[:4], **options)
    assert set(ENCODINGS) <= set(METHODS)
