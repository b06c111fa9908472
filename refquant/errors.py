"""The few kinds of error that refquant raises, and the one shape of their messages.

Every message says, in this order: what was got, what it should be, where, and what to do about it.
"""

import reprlib
from collections.abc import Iterable
from typing import TypeVar

__all__ = [
    "ArgumentError",
    "CertificateError",
    "CodeOverflowError",
    "FileError",
    "NotANumberError",
    "RefquantError",
    "complaint",
    "instance_of",
    "one_of",
]

Kind = TypeVar("Kind")


class RefquantError(Exception):
    """Anything that refquant refuses to do; the base of all its errors."""


class ArgumentError(RefquantError, ValueError):
    """An argument is of the wrong kind, shape, name or range."""


class NotANumberError(RefquantError, ValueError):
    """A NaN reached a place whose policy is `nan="raise"` (clause Q1)."""


class CodeOverflowError(RefquantError, OverflowError):
    """A code fell outside [qmin, qmax] under `overflow="raise"` (clause Q6)."""


class CertificateError(RefquantError):
    """A solution is not what it says: its objective or its bound does not hold."""


class FileError(RefquantError, ValueError):
    """A file cannot be read, cannot be written, or does not hold what it should."""


def complaint(got: str, should: str, where: str, todo: str = "") -> str:
    """The message `GOT, but should be SHOULD [WHERE]: TODO`.

    >>> complaint("zero_point=300", "in [0, 255]", "quantize(spec=uint8)", "clip it or widen bits")
    'zero_point=300, but should be in [0, 255] [quantize(spec=uint8)]: clip it or widen bits'
    >>> complaint("bits=0", "1 to 32", "QuantSpec")
    'bits=0, but should be 1 to 32 [QuantSpec]'
    """
    return f"{got}, but should be {should} [{where}]" + (f": {todo}" if todo else "")


def instance_of(value: object, kind: type[Kind], what: str, where: str) -> Kind:
    """The value itself, which is of this class; raises ArgumentError where it is not.

    >>> instance_of(8, int, "bits", "QuantSpec")
    8
    """
    if not isinstance(value, kind):
        raise ArgumentError(complaint(f"{what}={reprlib.repr(value)}", f"of type {kind.__name__}", where))
    return value


def one_of(value: object, names: Iterable[str], what: str, where: str) -> str:
    """The value itself, which is one of the names; raises ArgumentError where it is not, whatever it is.

    >>> one_of("floor", ("floor", "ceil"), "rounding", "clause Q4")
    'floor'
    """
    known = tuple(names)
    if not (isinstance(value, str) and value in known):
        raise ArgumentError(complaint(f"{what}={reprlib.repr(value)}", f"one of {', '.join(known)}", where))
    return value
