"""Backends by name: functions and programs as values that other processes can use too.

`Filter` is the quickest way to ask a kernel for millions of answers: numbers on its standard input, as the machine
holds them, numbers on its standard output.  `Spoken` is a program that speaks the protocol, line by line.
"""

import os
import pkgutil
import shlex
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, complaint
from .operations import Request
from .program import Program
from .protocol import Answer
from .step_function import SCALAR
from .verify import Failed

__all__ = ["Filter", "Named", "Spoken", "function_at"]


def function_at(place: str, where: str = "MODULE:FUNCTION") -> Any:
    """The function of MODULE:FUNCTION, modules of the working folder too.

    Raises ArgumentError where there is none, or its module cannot be imported.

    >>> function_at("math:floor")(1.5)
    1
    """
    sys.path.insert(0, os.getcwd())
    try:
        found = pkgutil.resolve_name(place)
    except Exception as error:  # whatever the module raises
        got = f"{type(error).__name__}: {error}"
        raise ArgumentError(complaint(got, "MODULE:FUNCTION", f"{where} {place}")) from None
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise ArgumentError(complaint(f"{type(found).__name__}", "a function of a Request", f"{where} {place}"))
    return found


@dataclass(frozen=True)
class Named:
    """A function of a `Request` by its place, found anew in each process."""

    place: str

    def __call__(self, request: Request) -> Any:
        return function_at(self.place)(request)


@dataclass(frozen=True)
class Filter:
    """A program that reads little-endian 32-bit inputs to their end, writes as many 32-bit answers, and ends with 0.

    command: a line that is split as a shell would.  timeout: seconds for a request.  It is not told the rule: its
    parameters are its own, given on the line.
    """

    command: str
    timeout: float = 600.0

    def __call__(self, request: Request) -> NDArray[Any] | Failed:
        names = SCALAR[request.op]
        x = np.asarray(request.inputs[names.first])
        given = x.astype(x.dtype.newbyteorder("<"), copy=False).tobytes()
        try:
            run = subprocess.run(
                shlex.split(self.command), input=given, capture_output=True, timeout=self.timeout, check=False
            )
        except (OSError, ValueError, IndexError) as error:
            return Failed(f"{self.command}: {error}")
        except subprocess.TimeoutExpired:
            return Failed(f"no end within {self.timeout:g} s")
        if run.returncode:
            said = run.stderr[-200:].decode("utf-8", "backslashreplace").strip()
            return Failed(f"it ended with status {run.returncode}; it said: {said}")
        if len(run.stdout) != len(given):
            return Failed(f"it wrote {len(run.stdout)} bytes for {len(given)}")
        return np.frombuffer(run.stdout, np.dtype(names.result).newbyteorder("<")).astype(names.result)


@dataclass(frozen=True)
class Spoken:
    """A program that speaks the protocol of `refquant verify`; timeout: seconds for a request."""

    command: str
    timeout: float = 600.0

    def __call__(self, request: Request) -> Answer:
        with Program(self.command, timeout=self.timeout) as program:
            return program(request)
