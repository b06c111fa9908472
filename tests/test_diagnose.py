"""Diagnosis names planted faults, alone and in pairs, and nothing else; what it says with certainty is so."""

import os
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from refquant.conform.deviations import DEVIATIONS, pairs
from refquant.conform.diagnose import diagnose, diagnose_requests
from refquant.conform.diagnosis import Explanation
from refquant.conform.examine import MOST_ELEMENTS, examine, names_it
from refquant.conform.mutants import MUTANTS, Mutant
from refquant.conform.operations import OPERATIONS, Request, evaluate
from refquant.conform.packs import Pack, level_one
from refquant.conform.separate import agree, change_of, predict
from refquant.errors import ArgumentError
from refquant.quant.integer_spec import IntegerSpec
from refquant.quant.spec import QuantSpec

Array = NDArray[Any]

EVERY = 1 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 7
"""Every how many mutants are examined here; docs/make_conformance.py examines all."""


@pytest.fixture(scope="module")
def pack() -> Pack:
    return level_one()


def _f(*values: float) -> Array:
    return np.array(values, np.float32)


# ---- planted faults -------------------------------------------------------------------------------------------


@pytest.mark.guarantee(
    "Diagnosis names every planted fault, or a class that holds it, from one test or at most 4,096 elements.",
    "sampled",
    "",
)
@pytest.mark.parametrize("mutant", MUTANTS[::EVERY], ids=lambda m: f"{m.op}-{m.deviation}")
def test_planted_faults_are_named(pack: Pack, mutant: Mutant) -> None:
    found = examine(pack, mutant.op, (mutant.deviation,))
    assert found is not None
    assert found.named, str(found.diagnosis)
    assert found.diagnosis.elements <= MOST_ELEMENTS or mutant.op == "network"


@pytest.mark.guarantee("Diagnosis names at least 90 % of pairs of planted faults.", "sampled", "")
def test_pairs_of_planted_faults_are_named(pack: Pack) -> None:
    rng, named = np.random.default_rng(0), []
    for op in ("quantize", "dequantize", "fake_quantize", "requantize", "average_pool", "qlinear_add", "encode_terms"):
        both = pairs(m.deviation for m in MUTANTS if m.op == op)
        for i in rng.permutation(len(both))[:8]:
            found = examine(pack, op, both[i])
            if found is not None:
                named.append(found.named)
    assert len(named) >= 20
    assert np.mean(named) >= 0.9


def _noise(rng: np.random.Generator, a: Array) -> Array:
    return rng.integers(-120, 120, a.shape).astype(a.dtype) if a.dtype.kind in "iu" else rng.normal(size=a.shape)


@pytest.mark.parametrize("op", OPERATIONS)
def test_right_answers_conform_and_noise_is_none(pack: Pack, op: str) -> None:
    every = [a for t in pack.tests for a in t.asked if a.request.op == op]
    asked = next((a for a in every if sum(v.size for v in a.expected.outputs.values()) >= 16), every[0])
    right = evaluate(asked.request)
    assert diagnose_requests([asked.request], [right]).conforms
    noise = {name: _noise(np.random.default_rng(1), a) for name, a in right.items()}
    found = diagnose_requests([asked.request], [noise])
    assert found.verdict == "none"
    assert "none of the catalogue's deviations" in str(found)


def test_one_element_that_a_deviation_would_not_give_refutes_it() -> None:
    x = np.arange(-40, 40, dtype=np.float32) / 4
    got = evaluate(
        Request("quantize", QuantSpec(8), {"x": x, "scale": 0.5, "zero_point": 0}), {"rounding": "half_away"}
    )
    spoiled = got["codes"].copy()
    assert diagnose("quantize", x, spoiled, spec=QuantSpec(8), scale=0.5, zero_point=0).explanations
    spoiled[17] += 1
    found = diagnose("quantize", x, spoiled, spec=QuantSpec(8), scale=0.5, zero_point=0)
    assert found.verdict == "none"
    assert "ties away" in found.refuted
    assert found.partial[0].deviations == ("ties away",)
    assert found.partial[0].broken <= 1


def test_a_name_is_not_given_for_another() -> None:
    x = _f(0.5, 2.5)
    found = diagnose("quantize", x, [1, 3], spec=QuantSpec(8), scale=1.0, zero_point=0)
    assert names_it(found, ["ties away"])
    assert not names_it(found, ["floor"])


# ---- what is said with certainty ------------------------------------------------------------------------------


def test_the_next_input_tells_explanations_apart() -> None:
    found = diagnose("quantize", _f(0.5), [1], spec=QuantSpec(8), scale=1.0, zero_point=0)
    assert found.verdict == "ambiguous"
    assert found.next_input is not None
    request = Request("quantize", QuantSpec(8), found.next_input.inputs)
    one, other = (evaluate(request, change_of(e.deviations)) for e in found.explanations[:2])
    assert not agree(request, one, other).all()


def _same(explanation: Explanation) -> bool:
    rng = np.random.default_rng(2)
    x = np.concatenate([(rng.integers(-300, 300, 3000) + 0.5) * 0.25, rng.normal(0, 60, 3000)]).astype(np.float32)
    request = Request("quantize", QuantSpec(8), {"x": x, "scale": np.float32(0.25), "zero_point": 3})
    first = predict(request, change_of(explanation.deviations))
    assert first is not None
    return all(agree(request, predict(request, change_of(names)), first).all() for names in explanation.same)


def test_explanations_called_the_same_are_the_same() -> None:
    x = np.arange(-30, 30, dtype=np.float32) / 8
    spec = QuantSpec(8)
    proved = 0
    for name in ("ties away", "floor", "reciprocal", "greatest code left out"):
        request = Request("quantize", spec, {"x": x, "scale": np.float32(0.25), "zero_point": 3})
        found = diagnose_requests([request], [evaluate(request, DEVIATIONS[name].change)])
        proved += sum(len(e.same) for e in found.explanations)
        assert all(_same(e) for e in found.explanations)
    assert proved


def test_witnesses_are_true() -> None:
    x = _f(0.5, 1.5, 2.5, -0.5)
    found = diagnose("quantize", x, [1, 2, 3, -1], spec=QuantSpec(8), scale=1.0, zero_point=0)
    assert found.refuted["floor"] == "codes[0]: would give 0, got 1"
    floor = evaluate(Request("quantize", QuantSpec(8), {"x": x, "scale": 1.0, "zero_point": 0}), {"rounding": "floor"})
    assert floor["codes"][0] == 0


def test_ties_are_counted() -> None:
    x = _f(0.5, 1.5, 2.5, 0.3)
    found = diagnose("quantize", x, [1, 2, 3, 0], spec=QuantSpec(8), scale=1.0, zero_point=0)
    assert "2 of the 2 lie exactly on ties" in found.notes


# ---- a report from the field ----------------------------------------------------------------------------------


def test_tensorflow_102943() -> None:
    """585 accumulated under three scales: the device says -120, every rule says -119; what is left, and what next."""
    scales: dict[str, Any] = {
        "input_scale": np.float32(0.05296124517917633),
        "weight_scale": np.float32(0.024093778803944588),
        "output_scale": np.float32(0.11484327912330627),
    }
    seen, spec = (np.array([585]), np.array([-120])), QuantSpec(8)
    for requantize in ("exact", "single-round", "double-round"):
        rule = IntegerSpec(requantize=requantize, accumulator_overflow="wrap")
        found = diagnose("requantize", *seen, spec=spec, integer=rule, zero_point=-126, **scales)
        assert "requantized by one rounding" not in [e.name for e in found.explanations]
        assert "requantized by two roundings" not in [e.name for e in found.explanations]
    rule = IntegerSpec(requantize="float32", accumulator_overflow="wrap")
    found = diagnose("requantize", *seen, spec=spec, integer=rule, zero_point=-126, **scales)
    left = {e.name: e for e in found.explanations}
    assert {"zero point before rounding", "factor in float32"} <= set(left)
    assert set(left["factor in float32"].same) == {("factor as a (w / y)",), ("factor by reciprocal",)}
    assert found.next_input is not None
    answers = {name: int(outputs["codes"][0]) for name, outputs in found.next_input.answers.items()}
    assert len(set(answers.values())) >= 2


# ---- bad input ------------------------------------------------------------------------------------------------


def test_bad_input_is_refused() -> None:
    spec = QuantSpec(8)
    with pytest.raises(ArgumentError, match="op='quantise'"):
        diagnose("quantise", [0.5], [1], spec=spec, scale=1.0, zero_point=0)
    with pytest.raises(ArgumentError, match="inputs x, zero_point"):
        diagnose("quantize", [0.5], [1], spec=spec, zero_point=0)
    with pytest.raises(ArgumentError, match="outputs kodes"):
        diagnose("quantize", [0.5], {"kodes": [1]}, spec=spec, scale=1.0, zero_point=0)
    with pytest.raises(ArgumentError, match="0 requests"):
        diagnose_requests([], [])
