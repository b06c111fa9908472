"""A small trained network for tests of methods: quick, and with a loss that quantization raises."""

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

import refquant as rq
from refquant.net.gradient import pullback, run
from refquant.net.graph import Graph, InputSpec, Node
from refquant.net.loss import cross_entropy
from refquant.net.optimize import adam
from refquant.net.program import transform

SPLIT = rq.load_data("fashion-mnist").calibration  # of the training split
assert SPLIT.y is not None

X = SPLIT.x.reshape(-1, 7, 4, 7, 4).mean(axis=(2, 4)).reshape(-1, 49).astype(np.float32)
"""The images, every 4 x 4 pixels averaged: shape (1024, 49)."""

Y = SPLIT.y

TRAINED_ON = 768
"""The network has seen the first 768 images; the others are held out."""

SIZES = (49, 32, 24, 10)


@cache
def trained() -> Graph:
    """49-32-24-10 with Relu, trained on the first 768 images by Adam in float32."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    nodes, previous = [], "x"
    for k, (n, m) in enumerate(pairwise(SIZES), start=1):
        attrs = {"in_features": n, "out_features": m}
        nodes.append(Node(f"gemm{k}", "Gemm", (previous,), attrs, {"weight": f"w{k}", "bias": f"b{k}"}))
        arrays |= {f"w{k}": rng.normal(size=(m, n)) * np.sqrt(2 / n), f"b{k}": np.zeros(m)}
        previous = f"relu{k}"
        nodes.append(Node(previous, "Relu", (f"gemm{k}",)))
    arrays = {name: a.astype(np.float32) for name, a in arrays.items()}
    graph = Graph(
        "small", InputSpec("x", (49,), scale=1 / 255, mean=0.286, std=0.353), "gemm3", tuple(nodes[:-1]), arrays
    )
    x, rule = transform(graph.input, X[:TRAINED_ON]), adam()
    values, state = arrays, rule.init(arrays)
    for _ in range(40):
        order = rng.permutation(TRAINED_ON)
        for some in order.reshape(-1, 64):
            tape = run(graph, {"x": x[some]}, values)
            gradients = pullback(tape, cross_entropy(tape.output, Y[some]).cotangent, list(values))
            values, state = rule.step(values, gradients, state, 3e-3)
    return graph.replace_arrays(values)
