"""Arrays, semantics and requests as JSON and back: what packs and the protocol are made of.

An array is {"dtype", "shape", "data"}: integers as numbers, floats as text (hexadecimal, or nan, inf, -inf) that the
dtype holds exactly; data of one entry stands for all.  Nothing that is read is trusted.
"""

import hashlib
import json
import math
import re
import reprlib
from collections.abc import Collection, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError, FileError, complaint
from ..quant.integer_spec import IntegerSpec
from ..quant.spec import QuantSpec
from .operations import OPERATIONS, SEMANTICS, Request

__all__ = [
    "MOST_ELEMENTS",
    "array_from_json",
    "array_to_json",
    "arrays_from_json",
    "digest_of",
    "exactly",
    "options_from_json",
    "request_from_json",
    "request_to_json",
    "semantics_from_json",
    "semantics_to_json",
]

Array = NDArray[Any]
Json = Any

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")
FLOATS = ("float16", "float32", "float64")
MOST_ELEMENTS = 1 << 26
"""No array that is read may be larger."""

LEAST_NORMAL = float(np.finfo(np.float64).smallest_normal)
_HEX = re.compile(r"[+-]?0x([01])(?:\.([0-9a-f]{1,13}))?p([+-]?\d{1,4})|nan|[+-]?inf")


def _fault(got: str, should: str, where: str) -> FileError:
    return FileError(complaint(got, should, where))


def exactly(data: Json, fields: Collection[str], where: str, optional: Collection[str] = ()) -> dict[str, Any]:
    """The object itself, whose fields are these and perhaps some optional ones; raises FileError for any other.

    >>> exactly({"a": 1}, ["a"], "here")
    {'a': 1}
    """
    if not isinstance(data, dict) or not set(fields) <= set(data) <= {*fields, *optional}:
        got = f"fields {', '.join(sorted(map(str, data)))}" if isinstance(data, dict) else reprlib.repr(data)
        raise _fault(got, f"an object with fields {', '.join(sorted(fields))}", where)
    return data


# ---- arrays ---------------------------------------------------------------------------------------------------


def _text(v: float) -> str:
    return v.hex() if math.isfinite(v) else repr(v)


def array_to_json(a: ArrayLike) -> dict[str, Any]:
    """An array of integers or floats; int64 becomes int32 where it fits.

    >>> array_to_json(np.float32([0.5, -0.0]))
    {'dtype': 'float32', 'shape': [2], 'data': ['0x1.0000000000000p-1', '-0x0.0p+0']}
    """
    v = np.asarray(a)
    if v.dtype == np.int64 and (not v.size or (v.min() >= -(2**31) and v.max() < 2**31)):
        v = v.astype(np.int32)
    if v.dtype.name not in (*INTEGERS, *FLOATS):
        raise ArgumentError(complaint(f"an array of {v.dtype}", f"one of {', '.join((*INTEGERS, *FLOATS))}", "JSON"))
    flat: list[Any] = v.ravel().tolist()
    data = list(map(_text, flat)) if v.dtype.kind == "f" else flat
    if len(data) > 1 and len(set(data)) == 1:
        data = data[:1]
    return {"dtype": v.dtype.name, "shape": list(v.shape), "data": data}


def _number(text: Json, dtype: str, where: str) -> float:
    match = _HEX.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise _fault(reprlib.repr(text), 'a hexadecimal float such as "0x1.8p+0", nan, inf or -inf', where)
    try:
        v = float.fromhex(text)
    except OverflowError:
        raise _fault(text, f"a value of {dtype}", where) from None
    with np.errstate(over="ignore"):
        held = math.isnan(v) or float(np.dtype(dtype).type(v)) == v
    if not held or (abs(v) < LEAST_NORMAL and not _same(match, v)):
        raise _fault(text, f"a value of {dtype}", where)
    return v


def _same(match: re.Match[str], v: float) -> bool:
    """Whether no bit was lost below float64's least number: 53 bits are held exactly above LEAST_NORMAL."""
    one, rest, exponent = match.group(1), match.group(2) or "", match.group(3)
    return Fraction(int(one + rest, 16)) * Fraction(2) ** (int(exponent) - 4 * len(rest)) == abs(Fraction(v))


def _shape(data: Json, where: str) -> tuple[int, ...]:
    sound = isinstance(data, list) and len(data) <= 8 and all(type(n) is int and n >= 0 for n in data)
    if not sound or math.prod(data) > MOST_ELEMENTS:
        raise _fault(reprlib.repr(data), f"a shape of at most 8 axes and {MOST_ELEMENTS} elements", where)
    return tuple(data)


def array_from_json(data: Json, where: str = "array") -> Array:
    """The array that `array_to_json` wrote; raises FileError for anything else.

    >>> array_from_json({"dtype": "float32", "shape": [2], "data": ["0x1.8p+0"]})
    array([1.5, 1.5], dtype=float32)
    """
    a = exactly(data, ("dtype", "shape", "data"), where)
    dtype, shape, values = a["dtype"], _shape(a["shape"], where), a["data"]
    size = math.prod(shape)
    if not isinstance(values, list) or len(values) not in (size, min(size, 1)):
        count = len(values) if isinstance(values, list) else reprlib.repr(values)
        raise _fault(f"data of {count}", f"a list of {size} entries, or of one", where)
    if dtype in FLOATS:
        made = np.array([_number(v, dtype, where) for v in values], dtype)
    elif dtype in INTEGERS:
        ends = np.iinfo(dtype)
        for v in values:
            if type(v) is not int or not ends.min <= v <= ends.max:
                raise _fault(reprlib.repr(v), f"an integer of {dtype}", where)
        made = np.array(values, dtype)
    else:
        raise _fault(f"dtype {reprlib.repr(dtype)}", f"one of {', '.join((*INTEGERS, *FLOATS))}", where)
    return made.reshape(shape) if len(values) == size else np.broadcast_to(made, size).reshape(shape).copy()


# ---- semantics ------------------------------------------------------------------------------------------------


def semantics_to_json(spec: QuantSpec, integer: IntegerSpec) -> dict[str, Any]:
    """Both specs as one object.

    >>> sorted(semantics_to_json(QuantSpec(8), IntegerSpec()))
    ['integer', 'spec']
    """
    return {"spec": json.loads(spec.to_json()), "integer": json.loads(integer.to_json())}


def digest_of(semantics: Json) -> str:
    """Twelve hexadecimal digits of the SHA-256 of both specs: a name for them in a file.

    >>> len(digest_of(semantics_to_json(QuantSpec(8), IntegerSpec())))
    12
    """
    return hashlib.sha256(json.dumps(semantics, sort_keys=True).encode()).hexdigest()[:12]


def semantics_from_json(data: Json, where: str) -> tuple[QuantSpec, IntegerSpec]:
    """What `semantics_to_json` wrote; raises FileError for anything else.

    >>> semantics_from_json(semantics_to_json(QuantSpec(8), IntegerSpec()), "here")[0].bits
    8
    """
    both = exactly(data, ("spec", "integer"), where)
    try:
        return QuantSpec.from_json(json.dumps(both["spec"])), IntegerSpec.from_json(json.dumps(both["integer"]))
    except ArgumentError as error:
        raise FileError(f"{where}: {error}") from None


# ---- requests -------------------------------------------------------------------------------------------------

_SCALARS = (bool, int, str)


def options_from_json(data: Json, where: str) -> dict[str, Any]:
    """Options are names with numbers, flags, texts, or short lists of numbers, which become tuples."""
    if not isinstance(data, dict):
        raise _fault(reprlib.repr(data), "an object of options", where)
    found: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, list) and len(value) <= 8 and all(type(v) is int for v in value):
            found[name] = tuple(value)
        elif isinstance(value, _SCALARS):
            found[name] = value
        else:
            raise _fault(f"option {name} = {reprlib.repr(value)}", "a number, flag, text, or list of integers", where)
    return found


def request_to_json(request: Request) -> dict[str, Any]:
    """A request as one object; arrays and options by name.

    >>> request = Request("quantize", QuantSpec(8), {"x": np.float32([1])})
    >>> sorted(request_to_json(request))
    ['inputs', 'integer', 'op', 'options', 'semantics', 'spec']
    """
    return {
        "op": request.op,
        "semantics": SEMANTICS,
        **semantics_to_json(request.spec, request.integer),
        "options": {n: list(v) if isinstance(v, tuple) else v for n, v in request.options.items()},
        "inputs": {n: array_to_json(a) for n, a in request.inputs.items()},
    }


def arrays_from_json(data: Json, where: str) -> dict[str, Array]:
    """Arrays by name."""
    if not isinstance(data, dict):
        raise _fault(reprlib.repr(data), "an object of arrays", where)
    return {str(name): array_from_json(a, f"{where}, {name}") for name, a in data.items()}


def request_from_json(data: Json, where: str = "request") -> Request:
    """The request that `request_to_json` wrote; raises FileError for anything else.

    >>> request_from_json(request_to_json(Request("quantize", QuantSpec(8), {"x": np.float32([1])}))).op
    'quantize'
    """
    fields: Mapping[str, Any] = exactly(data, ("op", "semantics", "spec", "integer", "options", "inputs"), where)
    if fields["semantics"] != SEMANTICS:
        raise _fault(f"semantics {reprlib.repr(fields['semantics'])}", SEMANTICS, where)
    if not (isinstance(fields["op"], str) and fields["op"] in OPERATIONS):
        raise _fault(f"op {reprlib.repr(fields['op'])}", f"one of {', '.join(OPERATIONS)}", where)
    spec, integer = semantics_from_json({n: fields[n] for n in ("spec", "integer")}, where)
    inputs = arrays_from_json(fields["inputs"], where)
    return Request(fields["op"], spec, inputs, options_from_json(fields["options"], where), integer)
