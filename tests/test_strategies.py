"""Strategies: what they draw is sound and hard, refquant answers all of it rightly, and planted faults are found."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis.errors import NoSuchExample

import refquant as rq
from refquant.conform.deviations import DEVIATIONS
from refquant.conform.golden_network import golden_network
from refquant.conform.judge import faults
from refquant.conform.operations import OPERATIONS, Request, evaluate
from refquant.conform.requests import SPOKEN
from refquant.conform.strategies import SEARCHED, answered, graphs, plans, requests, scales, specs, tensors
from refquant.net.files import read_network, write_network
from refquant.net.plan_json import plan_from_json, plan_to_json

SLOW = settings(max_examples=25, suppress_health_check=list(HealthCheck))
PAIRS = [(op, name) for op in SEARCHED for name in SPOKEN[op]]


def test_every_operation_but_whole_networks_is_searched() -> None:
    assert {*SEARCHED, "network"} == set(OPERATIONS)


@pytest.mark.parametrize(("op", "profile"), PAIRS)
@settings(SLOW, max_examples=6)
@given(data=st.data())
@pytest.mark.guarantee(
    "On drawn requests of every operation under every profile that speaks of it, pipelines and definitions agree.",
    "sampled",
    "Q1-Q6, D1-D2, R, M1-M2, N1-N5",
)
def test_pipelines_and_definitions_agree(op: str, profile: str, data: st.DataObject) -> None:
    request = data.draw(requests(op, profile))
    expected = answered(request)
    assert expected is not None
    assert not faults(request, expected, evaluate(request))


def wrong(change: dict[str, Any]) -> Any:
    def noticed(request: Request) -> bool:
        expected = answered(request)
        assert expected is not None
        return bool(faults(request, expected, evaluate(request, change)))

    return noticed


PLANTED = [
    ("quantize", "onnx@21", "ties away"),
    ("quantize", "onnx@21", "zero point ignored"),
    ("quantize", "pytorch@2", "wraps"),
    ("quantize", "seed-nearest@1", "ties up"),
    ("fake_quantize", "pytorch-fake@2", "ties toward zero"),
    ("dequantize", "onnx@21", "zero point ignored"),
    ("requantize", "tflite-double@1", "requantized by one rounding"),
    ("requantize", "seed-nearest@1", "ties away"),
    ("qlinear_conv", "onnx@21", "kernel flipped"),
    ("qlinear_add", "seed-nearest@1", "truncation"),
    ("average_pool", "seed-nearest@1", "ties away"),
]


@pytest.mark.parametrize(("op", "profile", "deviation"), PLANTED)
def test_a_planted_fault_is_found(op: str, profile: str, deviation: str) -> None:
    few = settings(SLOW, max_examples=1000, derandomize=True, database=None, phases=[Phase.generate])
    find(requests(op, profile), wrong(dict(DEVIATIONS[deviation].change)), settings=few)


def test_what_is_found_shrinks_to_one_tie() -> None:
    few = settings(SLOW, max_examples=200, derandomize=True, database=None)
    request = find(requests("quantize", "seed-nearest@1"), wrong({"rounding": "half_away"}), settings=few)
    assert request.inputs["x"].tolist() == [[0.5]]
    assert (float(request.inputs["scale"]), int(request.inputs["zero_point"])) == (1.0, 0)


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    with pytest.raises(NoSuchExample):
        find(requests("quantize", "onnx@21"), wrong({}), settings=settings(SLOW, max_examples=50, database=None))


@settings(SLOW, max_examples=100)
@given(spec=specs(rounding="floor"))
def test_specs_are_sound_and_fields_can_be_fixed(spec: rq.QuantSpec) -> None:
    assert spec.rounding == "floor"
    assert rq.QuantSpec.from_json(spec.to_json()) == spec


@settings(SLOW, max_examples=100)
@given(s=scales(2.0**-10, 2.0))
def test_scales_are_within_their_ends(s: np.float32) -> None:
    assert isinstance(s, np.float32)
    assert 2.0**-10 <= s <= 2


def test_tensors_are_rich_in_ties() -> None:
    """Of all drawn elements, a tenth at least are ties or lie beside one; of uniform ones none are."""
    drawn: list[float] = []

    @settings(SLOW, max_examples=150)
    @given(x=tensors(rq.QuantSpec(8), 0.5, 3))
    def collect(x: Any) -> None:
        drawn.extend(x.ravel().astype(float).tolist())

    collect()
    x = np.array([v for v in drawn if np.isfinite(v)])
    tie = np.abs(x / 0.5 - np.floor(x / 0.5) - 0.5) < 1e-5
    assert x.size > 200
    assert tie.mean() > 0.1
    assert np.isinf(drawn).any()
    assert not np.isnan(drawn).any()


@SLOW
@given(data=st.data())
@pytest.mark.guarantee(
    "On drawn networks with drawn plans, two interpreters of integer networks give the same codes.", "sampled", "N1-N5"
)
def test_two_interpreters_agree_on_drawn_networks(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    plan = data.draw(plans(graph))
    x = np.array(data.draw(st.lists(st.integers(-32, 32), min_size=16, max_size=16)), np.float32) / 16
    images = np.broadcast_to(x.reshape(1, 1, 4, 4), (1, *graph.input.shape)).copy()
    _, trace = rq.forward(graph, images, plan, "integer", trace=True)
    second = golden_network(graph, plan, images)
    assert set(trace) == set(second)
    for tensor, codes in trace.items():
        assert np.array_equal(codes, second[tensor]), tensor


@SLOW
@given(data=st.data())
def test_drawn_networks_and_plans_are_read_back_from_files(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    graph = data.draw(graphs())
    plan = data.draw(plans(graph))
    path = tmp_path_factory.mktemp("drawn") / "graph"
    write_network(graph, path)
    assert read_network(path).shapes == graph.shapes
    assert plan_to_json(plan_from_json(plan_to_json(plan))) == plan_to_json(plan)
