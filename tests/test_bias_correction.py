"""Bias correction: means measured come out as the float network's; means by the model against samples of the model."""

import numpy as np
import pytest
from numpy.typing import NDArray

import refquant as rq
from refquant.net.graph import Graph, InputSpec, Node
from refquant.ptq.bias_correction import Normal, analytic_biases, correct_biases, rectified, tensor_moments
from refquant.ptq.task import Task, make_task

DATA = rq.load_data("fashion-mnist")


def plain(name: str, bits: tuple[int, int], images: int = 64) -> tuple[rq.QuantPlan, Task]:
    task = make_task(rq.load_network(name), DATA.calibration.x[:images], bits=bits)
    plan = rq.QuantPlan({n.name: task.encode(n) for n in task.graph.linear_nodes}, task.activations)
    return plan, task


@pytest.mark.guarantee(
    "After empirical bias correction every output channel has the float network's mean on the calibration images",
    kind="checked",
)
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_channel_means_become_the_float_networks(name: str) -> None:
    plan, task = plain(name, (2, 4))
    mended = correct_biases(task, plan)
    images = DATA.calibration.x[:64]
    _, reference = rq.forward(task.graph, images, trace=True)
    for given, exact in ((mended, True), (plan, False)):
        _, trace = rq.forward(task.graph, images, given, mode="fake", trace=True)
        worst = 0.0
        for node in task.graph.linear_nodes:
            y, z = (t[node.name].astype(float) for t in (trace, reference))
            axes = (0, *range(2, y.ndim))
            size = np.abs(y).mean(axis=axes) + np.abs(z).mean(axis=axes)
            worst = max(worst, float((np.abs(y.mean(axis=axes) - z.mean(axis=axes)) / size).max()))
        # sums of at most 1568 float32 products and their moments: 2 gamma of 1568 terms, with cancellation to a tenth
        assert (worst < 2e-3) == exact
    assert mended.weights == plan.weights


def agreement(plan: rq.QuantPlan, images: NDArray[np.uint8]) -> float:
    graph = rq.load_network("resnet")
    logits, reference = rq.forward(graph, images, plan, mode="fake"), rq.forward(graph, images)
    return float(np.mean(logits.argmax(axis=1) == reference.argmax(axis=1)))


def test_bias_correction_helps_on_images_that_it_did_not_see() -> None:
    """Classes of the float network kept, with 3-bit weights and 4-bit activations: 54 % before, 80 % after."""
    plan, task = plain("resnet", (3, 4), 256)
    images = DATA.calibration.x[512:1024]
    assert agreement(correct_biases(task, plan), images) > agreement(plan, images) + 0.1


def test_rectified_normals_are_what_samples_show() -> None:
    """200,000 samples: the mean within 5 standard errors, the variance within 5 % of the normal's."""
    rng, n = np.random.default_rng(0), 200_000
    for m, s in ((0.0, 1.0), (1.5, 0.5), (-2.0, 1.0), (0.3, 3.0)):
        y = np.maximum(rng.normal(m, s, n), 0)
        told = rectified(Normal(np.array([m]), np.array([s * s])))
        assert abs(float(told.mean[0]) - y.mean()) < 5 * s / n**0.5
        assert abs(float(told.variance[0]) - y.var()) < 0.05 * s * s
    still = rectified(Normal(np.array([2.0, -2.0]), np.zeros(2)))
    assert still.mean.tolist() == [2.0, 0.0]
    assert np.all(still.variance < 1e-12)


def normed(N: int) -> tuple[Graph, NDArray[np.float64]]:
    """x -> Gemm (identity) -> BatchNorm -> Relu -> Gemm, with x so that the model is right."""
    rng = np.random.default_rng(7)
    eye, W = np.eye(3, dtype=np.float32), rng.normal(size=(2, 3)).astype(np.float32)
    norm: dict[str, list[float]] = {
        "gamma": [1.0, -0.5, 2.0],
        "beta": [0.2, 0.1, -1.0],
        "mean": [0, 0, 0],
        "var": [1, 1, 1],
    }
    nodes = (
        Node("a", "Gemm", ("x",), {"in_features": 3, "out_features": 3}, {"weight": "eye"}),
        Node("n", "BatchNorm", ("a",), {"channels": 3, "eps": 1e-12}, {k: k for k in norm}),
        Node("r", "Relu", ("n",)),
        Node("y", "Gemm", ("r",), {"in_features": 3, "out_features": 2}, {"weight": "W"}),
    )
    arrays = {"eye": eye, "W": W, **{k: np.asarray(v, np.float32) for k, v in norm.items()}}
    return Graph("normed", InputSpec("x", (3,)), "y", nodes, arrays), rng.normal(size=(N, 3))


def test_analytic_means_where_the_model_holds() -> None:
    graph, x = normed(40_000)
    _, trace = rq.forward(graph, x, trace=True)
    told = tensor_moments(graph)
    assert set(told) == {"n", "r"}
    for tensor, moments in told.items():
        seen = trace[tensor].astype(float)
        assert np.all(np.abs(seen.mean(axis=0) - moments.mean) < 5 * np.sqrt(seen.var(axis=0) / len(x)))
    spec = rq.QuantSpec(2, granularity=rq.PerChannel(0))
    plan = rq.QuantPlan({"y": rq.encode_terms(graph.arrays["W"], spec=spec, terms=1)})
    mended = analytic_biases(graph, plan)
    assert set(mended.biases) == {"y"}
    reference, before, after = (
        rq.forward(graph, x, p, mode="fake").mean(axis=0) for p in (rq.QuantPlan(), plan, mended)
    )
    # what is left is dW times the error of the told means, five standard errors at most; and float32 sums
    dW = np.abs(plan.weights["y"].decode(np.float64) - graph.arrays["W"])
    left = dW @ (5 * trace["r"].std(axis=0) / len(x) ** 0.5) + 1e-5
    assert np.all(np.abs(after - reference) < left)
    assert np.any(np.abs(before - reference) > left)


def test_analytic_biases_help_the_resnet_and_leave_networks_without_norms_alone() -> None:
    """With 2-bit weights: 18 % of the float network's classes kept before, 35 % after."""
    graph = rq.load_network("resnet")
    plan, _ = plain("resnet", (2, 8), 256)
    mended = analytic_biases(graph, plan)
    assert agreement(mended, DATA.calibration.x[512:1024]) > agreement(plan, DATA.calibration.x[512:1024]) + 0.05
    told = {"conv3", "conv5", "conv7", "conv8", "conv9", "gemm1"}
    assert set(mended.biases) >= told
    assert not set(mended.biases) & {"conv1", "conv2"}  # no norm says what images are, and nothing what a maximum is
    other, _ = plain("cnn", (3, 8))
    assert dict(analytic_biases(rq.load_network("cnn"), other).biases) == {}
