"""Golden tests of element-by-element operations as a C header: static arrays and a table, for kernels without files.

    #include "refquant_tests.h"
    for (size_t i = 0; i < refquant_test_count; i++) { const refquant_test *t = &refquant_tests[i]; ... }

Floats are hexadecimal constants (C99), so nothing is rounded on the way; NaN and infinities are macros of math.h.
A test has one scale and one zero point.  The profile's semantics stand in the header as text.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, complaint
from .operations import SEMANTICS, Request
from .packs import Asked, Pack
from .wire import semantics_to_json

__all__ = ["C_OPERATIONS", "c_header"]

Array = NDArray[Any]


class _Row(NamedTuple):
    """The inputs of an operation in C: reals, integers, its scale; then what comes out."""

    reals: str | None
    integers: str | None
    scale: str
    output: str


C_OPERATIONS: dict[str, _Row] = {
    "quantize": _Row("x", None, "scale", "codes"),
    "dequantize": _Row(None, "codes", "scale", "x"),
    "fake_quantize": _Row("x", None, "scale", "y"),
    "requantize": _Row(None, "acc", "multiplier", "codes"),
}
"""operation -> its inputs and its output in the table; the others have no place in it."""

HEAD = """\
/* Golden tests of refquant, semantics version {semantics}, profile {profile}: made, not to be edited.
 *
{specs}
 */
#ifndef REFQUANT_TESTS_H
#define REFQUANT_TESTS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {{ {enum} }} refquant_op;

typedef struct {{
    const char *id;
    refquant_op op;
    int spec;                /* which of the semantics above */
    int32_t qmin, qmax;      /* ends of the codes */
    double scale;            /* a float32, but for requantize: its multiplier */
    double zero_point;
    size_t count;
    const float *reals;      /* inputs of quantize and fake_quantize */
    const int32_t *integers; /* inputs of dequantize and requantize */
    const int32_t *codes;    /* what quantize and requantize give */
    const float *values;     /* what dequantize and fake_quantize give */
}} refquant_test;

"""

TAIL = """\
static const size_t refquant_test_count = sizeof refquant_tests / sizeof refquant_tests[0];

#endif
"""


def _real(v: float) -> str:
    """A C constant of this float32.

    >>> _real(0.5), _real(-0.0), _real(float("-inf"))
    ('0x1.0000000000000p-1f', '-0x0.0p+0f', '-INFINITY')
    """
    if np.isnan(v):
        return "NAN"
    return ("-" if v < 0 else "") + "INFINITY" if np.isinf(v) else f"{float(v).hex()}f"


def _integer(v: int) -> str:
    return str(v) if v > -(2**31) else f"({v + 1} - 1)"  # -2147483648 is no int in C


KINDS: dict[str, tuple[str, Callable[[Any], str]]] = {"f": ("float", _real), "i": ("int32_t", _integer)}


def _items(a: Array) -> str:
    """An array's type and elements, without its name."""
    kind, text = KINDS["f" if a.dtype.kind == "f" else "i"]
    items = [text(v) for v in a.ravel().tolist()]
    rows = ["    " + ", ".join(items[i : i + 8]) for i in range(0, len(items), 8)]
    return f"{kind}[] = {{\n" + ",\n".join(rows) + "\n};\n"


def _fits(a: Array) -> bool:
    """Whether an array has elements and C's float or int32_t holds them."""
    if a.dtype.kind == "f":
        return a.size > 0 and a.dtype == np.float32
    return a.size > 0 and -(2**31) <= int(a.min()) and int(a.max()) < 2**31


def _arrays(request: Request, asked: Asked) -> dict[str, Array] | None:
    """The test's arrays by field, None where it has no place in the table."""
    row = C_OPERATIONS.get(request.op)
    if row is None or row.scale not in request.inputs:
        return None
    if np.ndim(request.inputs[row.scale]) or np.ndim(request.inputs["zero_point"]):
        return None
    if row.scale == "scale" and np.asarray(request.inputs["scale"]).dtype != np.float32:
        return None
    out = np.asarray(asked.expected.outputs[row.output])
    found = {"values" if out.dtype.kind == "f" else "codes": out}
    for field, name in (("reals", row.reals), ("integers", row.integers)):
        if name is not None:
            found[field] = np.asarray(request.inputs[name])
    return found if all(map(_fits, found.values())) else None


def c_header(pack: Pack, profile: str) -> str:
    """The tests of a profile as a C header (C99 and on); the same pack gives the same text.

    Those of `C_OPERATIONS` with one scale, and elements that float or int32_t hold, one at least.

    Raises ArgumentError for a profile that the pack does not have, or of which no test is left.

    >>> from .packs import level_one
    >>> "static const refquant_test refquant_tests[] = {" in c_header(level_one(), "onnx@21").splitlines()
    True
    """
    specs: dict[str, int] = {}
    arrays: dict[str, str] = {}  # text -> name: equal arrays stand there once
    rows: list[str] = []
    for test, asked in pack.requests(profile):
        fields = _arrays(asked.request, asked)
        if fields is None:
            continue
        key = json.dumps(semantics_to_json(asked.request.spec, asked.request.integer), sort_keys=True)
        spec, inputs = specs.setdefault(key, len(specs)), asked.request.inputs
        names = {field: arrays.setdefault(_items(a), f"rq_{len(arrays)}") for field, a in fields.items()}
        scale = float(inputs[C_OPERATIONS[asked.request.op].scale])
        row = [
            f'"{test.id}"',
            f"RQ_{asked.request.op.upper()}",
            f"{spec}, {_integer(asked.request.spec.qmin)}, {asked.request.spec.qmax}",
            f"{scale.hex()}, {float(inputs['zero_point']).hex()}",
            str(next(iter(fields.values())).size),
            *(names.get(field, "NULL") for field in ("reals", "integers", "codes", "values")),
        ]
        rows.append("    {" + ", ".join(row) + "},\n")
    if not rows:
        raise ArgumentError(complaint("no test", f"one of {', '.join(C_OPERATIONS)}", f"C header, profile {profile}"))
    text = "\n".join(f" * {n}: {key}" for key, n in specs.items())
    enum = ", ".join(f"RQ_{op.upper()}" for op in C_OPERATIONS)
    head = HEAD.format(semantics=SEMANTICS, profile=profile, specs=text, enum=enum)
    held = "".join(f"static const {items.replace('[]', f' {name}[]', 1)}" for items, name in arrays.items())
    return head + held + "\nstatic const refquant_test refquant_tests[] = {\n" + "".join(rows) + "};\n" + TAIL
