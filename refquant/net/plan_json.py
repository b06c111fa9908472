"""A quantization plan as JSON and back: codes as integers, scales as hexadecimal floats."""

import json
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ArgumentError, FileError, complaint
from ..quant.integer_spec import IntegerSpec
from ..quant.multiterm import MultiTerm, sound
from ..quant.spec import QuantSpec
from .plan import ActivationQuantizer, QuantPlan

__all__ = ["plan_from_json", "plan_to_json"]

SCHEMA = "refquant-plan-3"


def _floats(a: Any) -> dict[str, Any]:
    a = np.asarray(a)
    return {"dtype": a.dtype.name, "shape": list(a.shape), "hex": [float(v).hex() for v in a.ravel()]}


def _integers(a: Any) -> dict[str, Any]:
    a = np.asarray(a)
    return {"shape": list(a.shape), "values": a.ravel().tolist()}


def plan_to_json(plan: QuantPlan) -> str:
    """The plan as JSON text, the same for the same plan."""
    weights = {
        name: {
            "specs": [json.loads(spec.to_json()) for spec in w.specs],
            "counts": _integers(w.counts),
            "scales": _floats(w.scales),
            "codes": _integers(w.codes),
        }
        for name, w in plan.weights.items()
    }
    activations = {
        name: {"spec": json.loads(a.spec.to_json()), "scale": _floats(a.scale), "zero_point": _integers(a.zero_point)}
        for name, a in plan.activations.items()
    }
    integer = None if plan.integer is None else json.loads(plan.integer.to_json())
    biases = {name: _floats(np.asarray(b, np.float32)) for name, b in plan.biases.items()}
    data = {
        "schema": SCHEMA,
        "weights": weights,
        "activations": activations,
        "biases": biases,
        "integer": integer,
    }
    return json.dumps(data, sort_keys=True)


def _array(data: dict[str, Any]) -> Any:
    if "hex" in data:
        if data["dtype"] not in ("float32", "float64"):
            raise ValueError(data["dtype"])
        values = np.array([float.fromhex(v) for v in data["hex"]], data["dtype"])
    else:
        values = np.array(data["values"], np.int64)
    return values.reshape(data["shape"])


def _spec(data: Any) -> QuantSpec:
    return QuantSpec.from_json(json.dumps(data))


def _terms(data: dict[str, Any]) -> MultiTerm:
    specs = tuple(map(_spec, data["specs"]))
    codes, scales, counts = (_array(data[key]) for key in ("codes", "scales", "counts"))
    sums = sound(MultiTerm(codes, scales, specs, counts), "weights of the plan")
    return replace(sums, codes=sums.codes.astype(np.result_type(*(spec.code_dtype for spec in specs))))


def plan_from_json(text: str) -> QuantPlan:
    """The plan that `plan_to_json` wrote; nothing in the text is trusted.

    Raises FileError where it is not such a plan.

    >>> plan_from_json(plan_to_json(QuantPlan())).weights
    {}
    """
    try:
        data = json.loads(text)
        if set(data) != {"schema", "weights", "activations", "biases", "integer"} or data["schema"] != SCHEMA:
            raise ValueError(f"schema {data.get('schema')!r}")
        weights = {name: _terms(w) for name, w in data["weights"].items()}
        activations = {
            name: ActivationQuantizer(_spec(a["spec"]), _array(a["scale"]), _array(a["zero_point"]))
            for name, a in data["activations"].items()
        }
        biases = {name: np.asarray(_array(b), np.float32) for name, b in data["biases"].items()}
        integer = None if data["integer"] is None else IntegerSpec.from_json(json.dumps(data["integer"]))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, ArgumentError) as error:
        got = f"{type(error).__name__}: {error}"
        raise FileError(complaint(got, f"a plan of schema {SCHEMA}", "plan_from_json")) from None
    return QuantPlan(weights, activations, integer, biases)
