"""What a quantizer does, as one frozen value: the parameters of clauses Q1 to Q6 and D1 to D2."""

import hashlib
import json
import reprlib
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from ..arith.quotient import QUOTIENTS
from ..arith.rounding import MODES
from ..errors import ArgumentError, complaint, one_of
from .granularity import Granularity, PerTensor, granularity_from_json

__all__ = ["CHOICES", "QuantSpec", "fields_from_json"]

CHOICES: dict[str, tuple[str, ...]] = {
    "rounding": (*MODES, "stochastic"),
    "quotient": tuple(QUOTIENTS),
    "zero_point_order": ("after", "before"),
    "overflow": ("saturate", "wrap", "raise"),
    "nan": ("raise", "zero", "qmin", "qmax"),
    "dequantize": ("scale-difference", "difference-of-products"),
}
"""The named values that each choice of a spec may take."""


def fields_from_json(cls: type, text: str) -> dict[str, Any]:
    """The object in a JSON text, whose keys are exactly the fields of a dataclass.

    Raises ArgumentError for anything else.

    >>> fields_from_json(PerTensor, "{}")
    {}
    """
    try:
        data = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise ArgumentError(complaint(f"text {reprlib.repr(text)}", "JSON", f"{cls.__name__}.from_json")) from None
    names = {f.name for f in fields(cls)}
    if not isinstance(data, dict) or set(data) != names:
        got = f"fields {sorted(data)}" if isinstance(data, dict) else reprlib.repr(data)
        raise ArgumentError(complaint(got, f"exactly {sorted(names)}", f"{cls.__name__}.from_json"))
    return data


@dataclass(frozen=True)
class QuantSpec:
    """A quantizer's semantics, validated once, printable, hashable, with a digest.

    bits: 1 to 32.  signed: codes -2^(b-1)..2^(b-1)-1, else 0..2^b-1.  narrow: the least code is left out.
    rounding: clause Q4, one of the nine modes or `stochastic` (random bits are the caller's).
    quotient: clause Q2.  zero_point_order: `after` rounding (Q5, an integer) or `before` (Q3, a real).
    overflow: clause Q6.  nan: clause Q1: `raise`, or the code that NaN becomes: `qmin`, `qmax`, or `zero`, the
    code that 0 has (the zero point, if it is added after rounding; else what these rules make of 0).
    dequantize: `scale-difference` is (q - z) s; `difference-of-products` is q s - z s, each product rounded.
    granularity: which elements share a scale.

    Raises ArgumentError for an unknown name, a width out of range, or a grid with fewer than two codes.

    >>> spec = QuantSpec(bits=4)
    >>> spec.qmin, spec.qmax, QuantSpec(4, narrow=True).qmin, QuantSpec(4, signed=False).qmax
    (-8, 7, -7, 15)
    >>> QuantSpec.from_json(spec.to_json()) == spec
    True
    """

    bits: int
    signed: bool = True
    narrow: bool = False
    rounding: str = "half_even"
    quotient: str = "exact"
    zero_point_order: str = "after"
    overflow: str = "saturate"
    nan: str = "raise"
    dequantize: str = "scale-difference"
    granularity: Granularity = PerTensor()  # noqa: RUF009 (frozen, without state)

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 1 <= self.bits <= 32:
            raise ArgumentError(complaint(f"bits={reprlib.repr(self.bits)}", "an integer from 1 to 32", "QuantSpec"))
        for name in ("signed", "narrow"):
            if type(getattr(self, name)) is not bool:
                got = f"{name}={reprlib.repr(getattr(self, name))}"
                raise ArgumentError(complaint(got, "True or False", "QuantSpec"))
        for name, names in CHOICES.items():
            one_of(getattr(self, name), names, name, "QuantSpec")
        if not isinstance(self.granularity, Granularity):
            got = f"granularity={reprlib.repr(self.granularity)}"
            raise ArgumentError(complaint(got, "PerTensor(), PerChannel(axis) or PerGroup(axis, size)", "QuantSpec"))
        if self.narrow and self.overflow == "wrap":
            got = "narrow=True with overflow='wrap'"
            raise ArgumentError(complaint(got, "a full grid: two's complement wraps onto every code", "QuantSpec"))
        if self.qmin == self.qmax:
            got = f"bits=1, narrow=True: the single code {self.qmin}"
            raise ArgumentError(complaint(got, "at least two codes", "QuantSpec", "leave narrow off, or take 2 bits"))

    @property
    def qmin(self) -> int:
        """The least code."""
        return (-(1 << (self.bits - 1)) if self.signed else 0) + self.narrow

    @property
    def qmax(self) -> int:
        """The greatest code."""
        return (1 << (self.bits - self.signed)) - 1

    @property
    def code_dtype(self) -> type[np.int32] | type[np.int64]:
        """The integer type of codes: int32, or int64 above 31 bits, so that arithmetic on codes does not wrap."""
        return np.int32 if self.bits <= 31 else np.int64

    def to_json(self) -> str:
        """The spec as one line of JSON with sorted keys."""
        data: dict[str, Any] = asdict(self)
        data["granularity"] = {"kind": type(self.granularity).__name__, **data["granularity"]}
        return json.dumps(data, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "QuantSpec":
        """The spec that `to_json` wrote; raises ArgumentError on unknown, missing or malformed fields."""
        data = fields_from_json(cls, text)
        return cls(**{**data, "granularity": granularity_from_json(data["granularity"])})

    @property
    def digest(self) -> str:
        """SHA-256 of the JSON form: equal exactly for equal specs."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def __str__(self) -> str:
        return f"{'' if self.signed else 'u'}int{self.bits}{' narrow' if self.narrow else ''}"
