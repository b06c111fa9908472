"""Every op against loops that say what it means, on integers, where float32 is exact: equality, no tolerance."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import softmax

from refquant.errors import ArgumentError
from refquant.net.forward import forward
from refquant.net.graph import Graph, InputSpec, Node, macs
from refquant.net.op import Misfit
from refquant.net.ops import OPS
from refquant.net.ops_linear import patches

Array = NDArray[np.float32]
Draw = st.DrawFn


def f32(values: Any) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def run(
    op: str,
    xs: list[Array],
    attrs: Mapping[str, Any] | None = None,
    arrays: Mapping[str, Array] | None = None,
) -> Array:
    """The op alone, straight from the table, with attributes in normal form and the shape that its rule foretells."""
    row, arrays = OPS[op], arrays or {}
    normal = row.read_attrs(attrs or {})
    y = row.forward(normal, arrays, xs)
    assert y.shape[1:] == row.shape(normal, [x.shape[1:] for x in xs])
    assert y.dtype == np.float32
    return y


def integers(draw: Draw, shape: tuple[int, ...], low: int = -8, high: int = 8) -> Array:
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).integers(low, high + 1, shape).astype(np.float32)


# ---- windows, by loops ----------------------------------------------------------------------------------------


@st.composite
def windows(draw: Draw, pool: bool = False) -> tuple[dict[str, Any], tuple[int, int]]:
    """Attributes of a window and an image size that it fits."""
    kernel = draw(st.tuples(*[st.integers(1, 3)] * 2))
    dilation = (1, 1) if pool else draw(st.tuples(*[st.integers(1, 2)] * 2))
    most = [k - 1 if pool else 2 for k in kernel] * 2
    padding = [draw(st.integers(0, m)) for m in most]
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    least = [max(1, e - padding[i] - padding[i + 2]) for i, e in enumerate(extent)]
    size = tuple(draw(st.integers(v, v + 4)) for v in least)
    stride = draw(st.tuples(*[st.integers(1, 3)] * 2))
    attrs = {"kernel": list(kernel), "stride": list(stride), "padding": padding, "dilation": list(dilation)}
    return attrs, (size[0], size[1])


def seen(attrs: Mapping[str, Any], size: tuple[int, int]) -> list[list[list[tuple[int, int, int, int]]]]:
    """For each output row and column, the (kernel row, kernel column, image row, image column) inside the image."""
    (H, W), (kh, kw), (sh, sw), (dh, dw) = size, attrs["kernel"], attrs["stride"], attrs["dilation"]
    top, left, bottom, right = attrs["padding"]
    rows = [r for r in range(-top, H + bottom) if (r + top) % sh == 0 and r + dh * (kh - 1) < H + bottom]
    columns = [c for c in range(-left, W + right) if (c + left) % sw == 0 and c + dw * (kw - 1) < W + right]
    taps = list(itertools.product(range(kh), range(kw)))
    return [
        [
            [(i, j, r + dh * i, c + dw * j) for i, j in taps if 0 <= r + dh * i < H and 0 <= c + dw * j < W]
            for c in columns
        ]
        for r in rows
    ]


def conv_by_loops(attrs: Mapping[str, Any], weight: Array, bias: Array, x: Array) -> Array:
    O, per_group, _, _ = weight.shape
    positions = seen(attrs, (x.shape[2], x.shape[3]))
    y = np.zeros((len(x), O, len(positions), len(positions[0])), np.float32)
    for n, o, r, c in np.ndindex(*y.shape):
        first = o // (O // attrs["groups"]) * per_group
        y[n, o, r, c] = bias[o] + sum(
            int(weight[o, k, i, j]) * int(x[n, first + k, a, b])
            for k in range(per_group)
            for i, j, a, b in positions[r][c]
        )
    return y


@st.composite
def convolutions(draw: Draw) -> tuple[dict[str, Any], Array, Array, Array]:
    attrs, (H, W) = draw(windows())
    G, per_group, outputs = (draw(st.integers(1, 3)) for _ in range(3))
    attrs |= {"groups": G, "in_channels": G * per_group, "out_channels": G * outputs}
    weight = integers(draw, (G * outputs, per_group, *attrs["kernel"]))
    return attrs, weight, integers(draw, (G * outputs,)), integers(draw, (draw(st.integers(0, 2)), G * per_group, H, W))


@pytest.mark.guarantee("Convolutions equal loops, with asymmetric padding, groups and dilation", kind="sampled")
@given(convolutions())
def test_conv_is_the_sum_that_loops_give(case: tuple[dict[str, Any], Array, Array, Array]) -> None:
    attrs, weight, bias, x = case
    expected = conv_by_loops(attrs, weight, bias, x)
    assert np.array_equal(run("Conv", [x], attrs, {"weight": weight, "bias": bias}), expected)
    without = expected - bias[:, None, None]
    assert np.array_equal(run("Conv", [x], attrs, {"weight": weight}), without)


@given(convolutions())
def test_conv_is_weight_times_patches(case: tuple[dict[str, Any], Array, Array, Array]) -> None:
    attrs, weight, bias, x = case
    G, O = attrs["groups"], attrs["out_channels"]
    P = patches(OPS["Conv"].read_attrs(attrs), x)
    expected = conv_by_loops(attrs, weight, bias, x)
    K = weight[0].size
    assert P.shape == (len(x), G, K, math.prod(expected.shape[2:]))
    product = weight.reshape(G, O // G, K) @ P
    assert np.array_equal(product.reshape(expected.shape) + bias[:, None, None], expected)


@pytest.mark.parametrize(("groups", "outputs"), [(1, 5), (3, 3), (3, 6)], ids=["full", "depthwise", "multiplied"])
def test_a_large_conv_is_the_sum_that_loops_give(groups: int, outputs: int) -> None:
    rng = np.random.default_rng(3)
    attrs = {"kernel": [3, 3], "stride": [2, 1], "padding": [0, 1, 1, 2], "dilation": [1, 1]}
    attrs |= {"groups": groups, "in_channels": 3, "out_channels": outputs}  # type: ignore[dict-item]  # mixed values
    weight = rng.integers(-9, 10, (outputs, 3 // groups, 3, 3)).astype(np.float32)
    bias, x = rng.integers(-9, 10, outputs).astype(np.float32), rng.integers(-9, 10, (3, 3, 11, 9)).astype(np.float32)
    expected = conv_by_loops(attrs, weight, bias, x)
    assert np.array_equal(run("Conv", [x], attrs, {"weight": weight, "bias": bias}), expected)


def pool_by_loops(attrs: Mapping[str, Any], x: Array, average: bool) -> Array:
    positions = seen(attrs, (x.shape[2], x.shape[3]))
    y = np.zeros((*x.shape[:2], len(positions), len(positions[0])), np.float32)
    for n, k, r, c in np.ndindex(*y.shape):
        values = [x[n, k, a, b] for _, _, a, b in positions[r][c]]
        count = math.prod(attrs["kernel"]) if attrs.get("count_include_pad") else len(values)
        y[n, k, r, c] = np.float32(sum(map(int, values))) / np.float32(count) if average else max(values)
    return y


@given(windows(pool=True), st.data())
def test_max_pool_is_the_largest_real_pixel(window: tuple[dict[str, Any], tuple[int, int]], data: Any) -> None:
    attrs, size = window
    x = data.draw(st.composite(lambda draw: integers(draw, (2, 2, *size), -9, -1))())  # padding is never the largest
    assert np.array_equal(run("MaxPool", [x], attrs), pool_by_loops(attrs, x, average=False))


@given(windows(pool=True), st.booleans(), st.data())
def test_average_pool_is_the_mean(
    window: tuple[dict[str, Any], tuple[int, int]], count_include_pad: bool, data: Any
) -> None:
    attrs, size = window
    attrs = {**attrs, "count_include_pad": count_include_pad}
    x = data.draw(st.composite(lambda draw: integers(draw, (2, 2, *size)))())
    assert np.array_equal(run("AveragePool", [x], attrs), pool_by_loops(attrs, x, average=True))


def test_padding_of_average_pool_is_left_out_unless_counted() -> None:
    x = np.full((1, 1, 2, 2), 8, np.float32)
    window = {"kernel": [2, 2], "stride": [2, 2], "padding": [1, 1]}
    assert run("AveragePool", [x], window).ravel().tolist() == [8, 8, 8, 8]
    assert run("AveragePool", [x], {**window, "count_include_pad": True}).ravel().tolist() == [2, 2, 2, 2]


def test_two_paddings_stand_for_both_sides() -> None:
    short, long = ({"kernel": [5, 5], "stride": [1, 1], "padding": p} for p in ([1, 2], [1, 2, 1, 2]))
    assert OPS["MaxPool"].read_attrs(short) == OPS["MaxPool"].read_attrs(long)
    assert OPS["MaxPool"].read_attrs(short)["padding"] == (1, 2, 1, 2)


# ---- the others -----------------------------------------------------------------------------------------------


def test_gemm_is_x_times_w_transposed_plus_b() -> None:
    x, W, b = (f32(v) for v in ([[1, 2, 3], [4, 5, 6]], [[1, 0, -1], [2, 2, 2]], [10, 20]))
    attrs = {"in_features": 3, "out_features": 2}
    assert run("Gemm", [x], attrs, {"weight": W, "bias": b}).tolist() == [[8, 32], [8, 50]]
    assert run("Gemm", [x], attrs, {"weight": W}).tolist() == [[-2, 12], [-2, 30]]
    assert np.array_equal((W @ patches(attrs, x))[:, 0, :, 0], run("Gemm", [x], attrs, {"weight": W}))


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 2, 4)], ids=["features", "images"])
def test_batch_norm_is_a_line_for_each_channel(shape: tuple[int, ...]) -> None:
    gamma, beta, mean, var = (f32(v) for v in ([6, 2, -4], [1, 0, 5], [2, -3, 0], [8, 3, 15]))  # eps + var: squares
    x = np.random.default_rng(0).integers(-9, 10, shape).astype(np.float32)
    y = run("BatchNorm", [x], {"channels": 3, "eps": 1.0}, {"gamma": gamma, "beta": beta, "mean": mean, "var": var})
    for c, (k, root) in enumerate([(6, 3), (2, 2), (-4, 4)]):
        assert np.array_equal(y[:, c], k // root * (x[:, c] - mean[c]) + beta[c])


def test_relu_and_relu6_clip() -> None:
    x = f32([[-2, -0.0, 0.5, 6, 6.5]])
    assert run("Relu", [x]).tolist() == [[0, 0, 0.5, 6, 6.5]]
    assert run("Relu6", [x]).tolist() == [[0, 0, 0.5, 6, 6]]


def test_add_adds_and_leaves_its_inputs() -> None:
    a, b = f32([[1, 2]]), f32([[10, 20]])
    assert run("Add", [a, b]).tolist() == [[11, 22]]
    assert a.tolist() == [[1, 2]]
    assert b.tolist() == [[10, 20]]


def test_global_average_pool_is_the_mean_of_each_channel() -> None:
    x = np.arange(16, dtype=np.float32).reshape(1, 2, 2, 4)
    assert run("GlobalAvgPool", [x]).tolist() == [[[[3.5]], [[11.5]]]]


def test_flatten_is_row_major_and_takes_no_images() -> None:
    x = np.arange(12, dtype=np.float32).reshape(2, 1, 2, 3)
    assert run("Flatten", [x]).tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert run("Flatten", [x[:0]]).shape == (0, 6)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_softmax_is_exp_over_its_sum(axis: int) -> None:
    x = np.random.default_rng(1).normal(0, 50, (2, 3, 4, 5)).astype(np.float32)
    y = run("Softmax", [x], {"axis": axis})
    expected = softmax(x.astype(np.float64), axis=axis)
    # exp magnifies the rounding of its argument, at most 2^-24 times 400; the rest is a few roundings
    assert np.all(np.abs(y - expected) <= (400 + 16) * 2.0**-24 * expected + 1e-37)
    assert np.allclose(y.sum(axis=axis), 1, rtol=0, atol=1e-6)


def test_softmax_does_not_overflow() -> None:
    assert run("Softmax", [f32([[1e38, 1e38, -1e38]])]).tolist() == [[0.5, 0.5, 0]]


def test_concat_joins_along_its_axis() -> None:
    a, b = np.ones((2, 1, 2, 2), np.float32), np.zeros((2, 3, 2, 2), np.float32)
    assert np.array_equal(run("Concat", [a, b]), np.concatenate([a, b], 1))
    assert np.array_equal(run("Concat", [a, a, a], {"axis": 3}), np.concatenate([a, a, a], 3))


def test_multiply_accumulates_of_a_grouped_conv_and_a_gemm() -> None:
    conv_attrs = {"in_channels": 4, "out_channels": 6, "kernel": [3, 2], "stride": [1, 1], "groups": 2}
    nodes = (
        Node("conv", "Conv", ("x",), conv_attrs, {"weight": "a"}),
        Node("flat", "Flatten", ("conv",)),
        Node("gemm", "Gemm", ("flat",), {"in_features": 6 * 3 * 5, "out_features": 7}, {"weight": "b"}),
    )
    arrays = {"a": np.ones((6, 2, 3, 2), np.float32), "b": np.ones((7, 90), np.float32)}
    graph = Graph("two", InputSpec("x", (4, 5, 6)), "gemm", nodes, arrays)
    assert macs(graph) == {"conv": (6 * 3 * 5) * (2 * 3 * 2), "gemm": 90 * 7}


# ---- what is refused ------------------------------------------------------------------------------------------

WINDOW = {"kernel": [2, 2], "stride": [1, 1]}
CONV = {"in_channels": 2, "out_channels": 2, **WINDOW}


@pytest.mark.parametrize(
    ("op", "attrs", "shapes", "message"),
    [
        ("Conv", CONV, [(3, 4, 4)], "3 channels"),
        ("Conv", {**CONV, "groups": 3}, [(2, 4, 4)], "groups=3"),
        ("Conv", CONV, [(2, 4)], r"shape \(2, 4\)"),
        ("Conv", {**CONV, "kernel": [5, 5]}, [(2, 4, 4)], "5 x 5 pixels"),
        ("Conv", {**CONV, "dilation": [1, 4]}, [(2, 4, 4)], "2 x 5 pixels"),
        ("Conv", {**CONV, "groups": 0}, [(2, 4, 4)], "groups=0"),
        ("Conv", {**CONV, "stride": [1]}, [(2, 4, 4)], "stride"),
        ("Conv", {**CONV, "stride": [1, 0]}, [(2, 4, 4)], "stride"),
        ("Conv", {**CONV, "stride": [1, 1.0]}, [(2, 4, 4)], "stride"),
        ("Conv", {**CONV, "stride": [True, True]}, [(2, 4, 4)], "stride"),
        ("Conv", {**CONV, "padding": [0, -1]}, [(2, 4, 4)], "padding"),
        ("Conv", {**CONV, "padding": [0, 0, 0]}, [(2, 4, 4)], "padding"),
        ("Conv", {**CONV, "padding": 1}, [(2, 4, 4)], "padding"),
        ("Conv", {**CONV, "pads": [1, 1]}, [(2, 4, 4)], "attribute pads"),
        ("Conv", WINDOW, [(2, 4, 4)], "no attribute in_channels"),
        ("MaxPool", {**WINDOW, "padding": [2, 0]}, [(2, 4, 4)], "padding"),
        ("MaxPool", {**WINDOW, "padding": [1, 1], "dilation": [2, 2]}, [(2, 4, 4)], "padding"),
        ("MaxPool", {"kernel": [2, 2]}, [(2, 4, 4)], "no attribute stride"),
        ("AveragePool", {**WINDOW, "count_include_pad": 1}, [(2, 4, 4)], "count_include_pad"),
        ("GlobalAvgPool", {}, [(2,)], r"shape \(2,\)"),
        ("Gemm", {"in_features": 3, "out_features": 1}, [(4,)], r"shape \(4,\)"),
        ("Gemm", {"in_features": 3, "out_features": 1}, [(3, 1, 1)], r"shape \(3, 1, 1\)"),
        ("BatchNorm", {"channels": 3, "eps": 1e-5}, [(4, 2, 2)], r"shape \(4, 2, 2\)"),
        ("BatchNorm", {"channels": 4, "eps": 0}, [(4, 2, 2)], "eps"),
        ("BatchNorm", {"channels": 4, "eps": float("inf")}, [(4, 2, 2)], "eps"),
        ("Add", {}, [(2,), (3,)], r"\(2,\) and \(3,\)"),
        ("Relu", {"alpha": 1}, [(2,)], "attribute alpha"),
        ("Softmax", {"axis": 2}, [(2,)], "axis=2"),
        ("Softmax", {"axis": 0}, [(2,)], "axis=0"),
        ("Concat", {}, [(2, 3), (2, 4)], "alike but for axis 1"),
        ("Concat", {}, [(2, 3), (2,)], "alike but for axis 1"),
    ],
)
def test_what_does_not_fit_is_refused(
    op: str, attrs: dict[str, Any], shapes: list[tuple[int, ...]], message: str
) -> None:
    with pytest.raises(Misfit, match=message):
        OPS[op].shape(OPS[op].read_attrs(attrs), shapes)


@pytest.mark.parametrize(("op", "inputs"), [("Add", 1), ("Add", 3), ("Relu", 2), ("Relu", 0), ("Concat", 0)])
def test_another_number_of_inputs_is_refused(op: str, inputs: int) -> None:
    with pytest.raises(ArgumentError, match=f"{inputs} inputs"):
        Graph("g", InputSpec("x", (1,)), "y", (Node("y", op, ("x",) * inputs),), {})


def test_the_other_spelling_is_understood() -> None:
    node = Node("y", "GlobalAveragePool", ("x",))
    graph = Graph("g", InputSpec("x", (1, 2, 2)), "y", (node,), {})
    assert graph.nodes[0].op == "GlobalAvgPool"
    assert forward(graph, np.full((1, 1, 2, 2), 3)).tolist() == [[[[3]]]]
