"""The operations that a backend is asked for: one table, with what goes in, what comes out, and the choices inside.

A `Request` is one question: an operation, the semantics (`spec`, `integer`), arrays and options.  `evaluate` answers
it by the pipelines of choices, with any of them changed; `reference` answers it by the product's own functions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..quant.integer_spec import IntegerSpec
from ..quant.spec import QuantSpec
from ..solve.allocate import allocate
from ..solve.heuristics import rule_scale
from ..solve.hull import marginal_greedy
from ..solve.scale import solve_scale, squared_error
from . import rules_layer as layer
from . import rules_scalar as scalar
from .networks import run_network
from .rules_scalar import Array, Inputs, Knobs, Outputs

__all__ = ["OPERATIONS", "Operation", "Request", "evaluate", "knobs"]

SEMANTICS = "1"
"""The version of the numbered clauses."""


@dataclass(frozen=True, eq=False)
class Request:
    """One question to a backend.

    op: a row of `OPERATIONS`.  spec, integer: the semantics asked for.  inputs: arrays by name.  options: what is no
    array, such as a stride or the name of a range rule.
    """

    op: str
    spec: QuantSpec
    inputs: Inputs
    options: Mapping[str, Any] = field(default_factory=dict)
    integer: IntegerSpec = field(default_factory=lambda: IntegerSpec(accumulator_overflow="wrap"))


# ---- the choices, as a spec names them ------------------------------------------------------------------------


def knobs(spec: QuantSpec, integer: IntegerSpec) -> dict[str, Any]:
    """Every choice with the value that the semantics give it.

    >>> knobs(QuantSpec(8), IntegerSpec())["rounding"]
    'half_even'
    """
    return {
        # clauses Q1 to Q6, D1, D2
        "operand": "as given",
        "scale": "as given",
        "quotient": spec.quotient,
        "zero_point_order": spec.zero_point_order,
        "rounding": spec.rounding,
        "overflow": "saturate" if spec.overflow == "raise" else spec.overflow,
        "grid": "full",
        "clip": "codes",
        "axis": "given",
        "nan": spec.nan,
        "infinity": "saturate",
        "zero point": "kept",
        "shape": "kept",
        "dequantize": spec.dequantize,
        "difference": "exact",
        "result": "rounded once",
        "sign of zero": "of the code",
        # theory 1.8
        "inside": "by the code",
        "scale gradient": "rounding less quotient",
        "outside": "ends",
        # R1 and on
        **{f"rule: {part}": None for part in ("scale", "zero_point", "dtype", "with_zero", "least")},
        "exponent": "exact",
        "zero overflow": "clamp",
        # N1 to N5
        "product": integer.product,
        "accumulator_bits": integer.accumulator_bits,
        "accumulator_overflow": "wrap" if integer.accumulator_overflow == "raise" else integer.accumulator_overflow,
        "input zero point": "kept",
        "weight zero point": "kept",
        "padding": "zero point",
        "window": "as given",
        "groups": "blocks",
        "kernel": "as given",
        "bias": "int32",
        "bias_rounding": integer.bias_rounding,
        "requantize": integer.requantize,
        "factor": integer.factor,
        "multiplier": "31 bits",
        "high ties": "up",
        "shift ties": "away",
        "add": integer.add,
        "zero point of a": "kept",
        "zero point of b": "kept",
        "sums of": "differences",
        "count": "as asked",
        "sum": "wide",
        "division": "as rounding",
        "pool": integer.pool,
        # M1, M2
        "residual": "float64",
        "scales": "own",
        "order": "first to last",
        "terms": "all",
        "digits": "two-terms",
        # solvers
        "solver": "certified",
        "bound": "proved",
    }


# ---- solvers and networks -------------------------------------------------------------------------------------


def _solve(k: Knobs, inputs: Inputs, spec: QuantSpec, options: Mapping[str, Any]) -> Outputs:
    """scale, objective and lower_bound of one row x."""
    x = np.asarray(inputs["x"], np.float64)
    best = solve_scale(x, spec=spec)
    scale, objective, bound = (np.asarray(v) for v in (best.value, best.objective, best.lower_bound))
    if k["solver"] != "certified":
        scale = np.asarray(rule_scale(x, k["solver"], spec=spec))
        objective = squared_error(x[None], np.ones((1, x.size)), scale[None], spec)[0]
    if k["bound"] == "the objective of absmax":
        bound = squared_error(x[None], np.ones((1, x.size)), np.array([np.abs(x).max() / spec.qmax or 1.0]), spec)[0]
    elif k["bound"] == "mean":
        objective = objective / max(x.size, 1)
    return {"scale": scale, "objective": np.asarray(objective), "lower_bound": np.asarray(bound)}


def _allocate(k: Knobs, inputs: Inputs, spec: QuantSpec, options: Mapping[str, Any]) -> Outputs:
    """choices, one an item, and the total error."""
    error, cost, budget = (np.asarray(inputs[n], np.float64) for n in ("error", "cost", "budget"))
    if k["solver"] in ("greedy", "greedy, ending at the first overflow"):
        chosen = marginal_greedy(error, cost, float(budget), stop=k["solver"] != "greedy")
    else:
        within = float(budget) * (1.1 if k["solver"] == "budget overrun" else 1.0)
        chosen = allocate(error, cost, within).value
    total = error[np.arange(len(error)), chosen].sum()
    return {"choices": np.asarray(chosen, np.int64), "error": np.asarray(total)}


_FIELDS = ("product", "requantize", "factor", "add", "pool", "bias_rounding")


def _network(k: Knobs, inputs: Inputs, spec: QuantSpec, options: Mapping[str, Any]) -> Outputs:
    """The codes of every tensor of the integer network options["network"], for images x."""
    integer = IntegerSpec(**{name: k[name] for name in _FIELDS}, accumulator_overflow="wrap")
    return run_network(options["network"], inputs, replace(spec, rounding=k["rounding"]), integer)


# ---- the table ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """inputs and outputs by name, what it is, and the pipeline (choices, inputs, spec, options) -> outputs."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    text: str
    run: Callable[[Knobs, Inputs, QuantSpec, Mapping[str, Any]], Outputs]


_Q = ("scale", "zero_point")


def _operands(*names: str) -> tuple[str, ...]:
    """Each name, and with it its scale and its zero point."""
    return tuple(f"{n}{part}" for n in names for part in ("", "_scale", "_zero_point"))


OPERATIONS: dict[str, Operation] = {
    "quantize": Operation(("x", *_Q), ("codes",), "codes of reals (clauses Q1 to Q6)", scalar.quantize),
    "dequantize": Operation(("codes", *_Q), ("x",), "reals of codes (D1, D2), in options.dtype", scalar.dequantize),
    "fake_quantize": Operation(("x", *_Q), ("y",), "dequantize after quantize, in x's type", scalar.fake_quantize),
    "range_parameters": Operation(
        ("lo", "hi"), ("scale", "zero_point"), "by the rule options.rule (R1 to R15)", scalar.range_parameters
    ),
    "dynamic_quantize": Operation(
        ("x",), ("codes", "scale", "zero_point"), "quantize by x's own range", scalar.dynamic_quantize
    ),
    "requantize": Operation(
        ("acc", "multiplier | input_scale, weight_scale, output_scale", "zero_point"),
        ("codes",),
        "codes of int32 accumulators (N3)",
        layer.requantize,
    ),
    "matmul_integer": Operation(
        ("a", "b", "a_zero_point", "b_zero_point"), ("acc",), "sums of (a - z_a)(b - z_b) (N1)", layer.matmul_integer
    ),
    "conv_integer": Operation(
        ("x", "w", "x_zero_point", "w_zero_point"), ("acc",), "the same for a convolution", layer.conv_integer
    ),
    "qlinear_matmul": Operation(
        (*_operands("a", "b"), "y_scale", "y_zero_point"),
        ("codes",),
        "matmul, requantized (N1, N3)",
        layer.qlinear_matmul,
    ),
    "qlinear_conv": Operation(
        (*_operands("x", "w"), "y_scale", "y_zero_point", "bias"),
        ("codes",),
        "convolution with bias, requantized (N1 to N3)",
        layer.qlinear_conv,
    ),
    "qlinear_add": Operation(
        (*_operands("a", "b"), "y_scale", "y_zero_point"),
        ("codes",),
        "sum of two quantized tensors (N4)",
        layer.qlinear_add,
    ),
    "average_pool": Operation(("x", "zero_point"), ("codes",), "mean of codes over windows (N5)", layer.average_pool),
    "encode_terms": Operation(("x", "scales"), ("codes",), "codes of a sum of terms (M1)", layer.encode_terms),
    "decode_terms": Operation(("codes", "scales"), ("x",), "reals of a sum of terms (M2)", layer.decode_terms),
    "matmul_terms": Operation(
        ("a", "b", "a_zero_point", "b_zero_point"), ("acc",), "8-bit sums by 4-bit digits", layer.matmul_terms
    ),
    "gradient": Operation(
        ("x", "cotangent", *_Q), ("x", "scale"), "cotangents of fake_quantize (theory 1.8)", scalar.gradient
    ),
    "solve_scale": Operation(("x",), ("scale", "objective", "lower_bound"), "the certified scale of a row", _solve),
    "allocate": Operation(("error", "cost", "budget"), ("choices", "error"), "the exact allocation", _allocate),
    "network": Operation(("x", "..."), ("...",), "codes of every tensor of an integer network", _network),
}
"""name -> operation.  Networks give an output for each tensor, by its name."""


def evaluate(request: Request, change: Mapping[str, Any] | None = None) -> Outputs:
    """The outputs of a request, with some choices changed from what its semantics say.

    >>> request = Request("quantize", QuantSpec(8), {"x": np.array([0.5, 1.5]), "scale": 1.0, "zero_point": 0})
    >>> evaluate(request)["codes"].tolist(), evaluate(request, {"rounding": "half_away"})["codes"].tolist()
    ([0, 2], [1, 2])
    """
    k = {**knobs(request.spec, request.integer), **(change or {})}
    outputs: dict[str, Array] = OPERATIONS[request.op].run(k, request.inputs, request.spec, request.options)
    return outputs
