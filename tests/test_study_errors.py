"""The analysis of errors that a study reports: its parts agree with each other, and nothing in it is infinite."""

import json
from typing import Any

import numpy as np
import pytest

import refquant as rq
from refquant.ptq.errors import analyse_errors, sqnr
from refquant.ptq.task import make_task


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    data, network = rq.load_data("fashion-mnist"), rq.load_network("mlp")
    plan = rq.quantize_network(network, data.calibration.x, bits=(4, 8))
    graph = make_task(network, data.calibration.x[:1]).graph
    return analyse_errors(graph, plan, data.calibration.x, data.test.x, {"the same": plan})


def test_contributions_add_up(found: dict[str, Any]) -> None:
    parts = found["contributions"]
    rows = parts["sources"]
    assert sum(row["share"] for row in rows) == pytest.approx(1, rel=1e-9)
    gram = np.array(parts["gram"])
    assert gram.sum() == pytest.approx(parts["mse"], rel=1e-9)
    assert gram.sum() - np.trace(gram) == pytest.approx(parts["interaction"], rel=1e-9, abs=1e-12)
    assert parts["residual"] < 1e-12


def test_bounds_hold_and_order(found: dict[str, Any]) -> None:
    assert len(found["bounds"]) == 3
    for row in found["bounds"]:
        assert row["measured"] <= row["affine"] <= row["interval"]


def test_certified_images_agree(found: dict[str, Any]) -> None:
    assert found["certified"]["plan"] == found["certified"]["the same"]
    assert 0 < found["certified"]["plan"]["certified"] <= found["certified"]["plan"]["agreeing"]


def test_it_is_plain_data(found: dict[str, Any]) -> None:
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_no_error_is_none() -> None:
    data, network = rq.load_data("fashion-mnist"), rq.load_network("mlp")
    nothing = analyse_errors(
        make_task(network, data.calibration.x[:1]).graph, rq.QuantPlan(), data.calibration.x[:4], data.test.x[:2], {}
    )
    assert nothing["contributions"]["sources"] == []
    assert all(row["forecast_sqnr_db"] is None for row in nothing["layers"].values())
    assert sqnr(np.ones(2), np.ones(2)) is None
