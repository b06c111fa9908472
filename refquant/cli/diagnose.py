"""`refquant diagnose`: which rule a backend's outputs break, from inputs and outputs in files or on the line."""

import argparse
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..conform.case import Case
from ..conform.diagnose import check_inputs, diagnose_requests
from ..conform.operations import OPERATIONS
from ..conform.requests import SPOKEN, request_of
from ..conform.wire import options_from_json
from ..errors import ArgumentError, complaint
from .common import granularity
from .solve import read_array

__all__ = ["add_diagnose"]

TYPED = (".npy", ".npz")
"""Files whose arrays have a type of their own; in others, and on the line, the operation says which."""

REALS = {
    "quantize": ("x",),
    "fake_quantize": ("x", "y"),
    "dynamic_quantize": ("x",),
    "gradient": ("x", "cotangent"),
    "dequantize": ("x",),
    "range_parameters": ("lo", "hi"),
    "solve_scale": ("x",),
    "encode_terms": ("x",),
}
"""operation -> its float32 arrays; scales are float32 everywhere, a multiplier float64, all else integers."""


def _type(op: str, name: str) -> type:
    if name == "multiplier":
        return np.float64
    return np.float32 if name.endswith(("scale", "scales")) or name in REALS.get(op, ()) else np.int64


def _array(op: str, name: str, text: str) -> NDArray[Any]:
    """The array that a value on the line stands for: a number, a list in brackets, or a file."""
    if text.partition(":")[0].endswith(TYPED):
        return read_array(text)
    if text.endswith(".csv"):
        a = read_array(text)
        a = a[0] if len(a) == 1 else a
    else:
        try:
            a = np.asarray(json.loads(re.sub(r"\binf\b", "Infinity", re.sub(r"\bnan\b", "NaN", text))), np.float64)
        except (ValueError, TypeError):
            raise ArgumentError(complaint(repr(text), "a number, a list [...], or a file", f"{name}=")) from None
    kind = _type(op, name)
    if kind is np.int64 and np.any(a != np.rint(a)):
        raise ArgumentError(complaint(f"{text!r}", "integers", f"{name}="))
    return a.astype(kind)


def _named(op: str, pairs: Sequence[str]) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or name in found:
            raise ArgumentError(complaint(repr(pair), "NAME=VALUE, each name once", "refquant diagnose"))
        found[name] = _array(op, name, text)
    return found


def _run(args: argparse.Namespace) -> int:
    inputs, outputs = _named(args.op, args.inputs), _named(args.op, args.outputs)
    check_inputs(args.op, inputs)
    try:
        options = json.loads(args.options)
    except ValueError:
        raise ArgumentError(complaint(repr(args.options), "an object in JSON", "--options")) from None
    case = Case(
        args.op,
        inputs,
        args.bits,
        not args.unsigned,
        granularity(args.granularity),
        options_from_json(options, "--options"),
    )
    request = request_of(case, args.profile)
    if request is None:
        raise ArgumentError(complaint(f"--profile {args.profile}", f"one of {', '.join(SPOKEN[args.op])}", args.op))
    found = diagnose_requests([request], [outputs])
    print(json.dumps(found.to_json(), indent=1) if args.json else found)
    return 0 if found.conforms else 1


def add_diagnose(commands: Any) -> None:
    """Add the command to the parser's commands."""
    rows = "\n".join(f"  {op}: {', '.join(row.inputs)} -> {', '.join(row.outputs)}" for op, row in OPERATIONS.items())
    parser = commands.add_parser(
        "diagnose",
        help="which rule a backend's outputs break",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"operations, with their inputs and outputs:\n{rows}",
    )
    parser.add_argument("op", metavar="OP", choices=list(OPERATIONS), help="an operation, such as quantize")
    parser.add_argument(
        "inputs", nargs="+", metavar="NAME=VALUE", help="inputs: a number, a list, a .npy or .csv file, FILE.npz:NAME"
    )
    parser.add_argument(
        "--outputs", nargs="+", required=True, metavar="NAME=VALUE", help="what the backend answered, in the same form"
    )
    parser.add_argument("--profile", required=True, metavar="P", help="the semantics that it should have")
    parser.add_argument("--bits", type=int, default=8, help="bits of a code (default 8)")
    parser.add_argument("--unsigned", action="store_true", help="codes from 0 on")
    parser.add_argument("--granularity", default="tensor", help="tensor, channel or group:N (default tensor)")
    parser.add_argument("--options", default="{}", metavar="JSON", help='such as {"stride": [2, 2]}')
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)
