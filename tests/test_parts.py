"""Parts of networks: every layer in one, chained at cuts, and cuts are what paths cannot avoid."""

from collections.abc import Iterator

import numpy as np
import pytest

import refquant as rq
from refquant.errors import ArgumentError
from refquant.net.fold import fold_batch_norm
from refquant.net.gradient import run
from refquant.net.graph import Graph
from refquant.ptq.parts import GRANULARITIES, Part, parts_of

NETWORKS = {name: fold_batch_norm(rq.load_network(name)) for name in ("mlp", "cnn", "resnet")}


def avoidable(graph: Graph, tensor: str) -> bool:
    """Whether the output can be reached from the input without this tensor: by search, forwards."""
    reached = {graph.input.name} - {tensor}
    for node in graph.nodes:
        if node.name != tensor and reached & set(node.inputs):
            reached.add(node.name)
    return graph.output in reached


def cases() -> Iterator[tuple[Graph, str, list[Part]]]:
    for graph in NETWORKS.values():
        for granularity in GRANULARITIES:
            yield graph, granularity, parts_of(graph, granularity)


@pytest.mark.guarantee("Every layer lies in one part; blocks, stages and networks chain at cuts", kind="exhaustive")
def test_parts_hold_every_layer_once_and_chain_at_cuts() -> None:
    for graph, granularity, parts in cases():
        assert [name for part in parts for name in part.layers] == [node.name for node in graph.linear_nodes]
        if granularity == "layer":
            assert all(len(part.layers) == 1 for part in parts)
        else:
            assert [graph.input.name, *(p.output for p in parts)] == [*(p.input for p in parts), graph.output]
            assert not any(avoidable(graph, part.output) for part in parts)


def test_a_residual_block_is_not_divided_and_what_lies_inside_can_be_avoided() -> None:
    graph = NETWORKS["resnet"]
    blocks = parts_of(graph, "block")
    assert ("conv2", "conv3") in [block.layers for block in blocks]
    assert avoidable(graph, "relu2")  # so a search that took it for a cut would be noticed


def exact(graph: Graph, rng: np.random.Generator) -> Graph:
    """The network with few weights, -1 or 1, and one an output of the last layer: float64 holds every sum exactly."""
    arrays = {}
    for node in graph.linear_nodes:
        w = graph.param(node, "weight")
        few = rng.choice([-1, 1], w.shape) * (rng.random(w.shape) < 3 / w[0].size)
        arrays[node.params["weight"]] = few if node.name != graph.output else np.eye(*w.shape)
        arrays[node.params["bias"]] = rng.integers(-3, 4, len(w))
    return graph.replace_arrays({name: a.astype(np.float32) for name, a in arrays.items()})


def test_blocks_run_one_after_another_are_the_network() -> None:
    rng = np.random.default_rng(0)
    for graph in (exact(network, rng) for network in NETWORKS.values()):
        x = rng.integers(0, 256, (4, *graph.input.shape)).astype(np.float64)
        values = x
        for part in parts_of(graph, "block"):
            values = run(graph, {part.input: values}, output=part.output).output
        whole = run(graph, {graph.input.name: x}).output
        assert np.array_equal(values, whole)
        assert len(np.unique(whole)) > 4


def test_an_unknown_granularity_is_refused() -> None:
    with pytest.raises(ArgumentError, match="granularity"):
        parts_of(NETWORKS["mlp"], "blok")
