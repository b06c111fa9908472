"""`refquant solve scale | terms | allocate`: the solvers on arrays in files, answers with their bounds."""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arith.rounding import MODES
from ..errors import ArgumentError, FileError, complaint
from ..net.files import read_arrays
from ..quant.spec import QuantSpec
from ..solve.allocate import allocate
from ..solve.heuristics import compare
from ..solve.scale import OBJECTIVES, solve_scale
from ..solve.solution import Solution
from ..solve.terms import METHODS, encode_terms
from .common import granularity

__all__ = ["add_solve", "read_array"]


def _csv(path: str) -> NDArray[Any]:
    return np.loadtxt(path, delimiter=",", ndmin=2)


def _npy(path: str) -> NDArray[Any]:
    return np.asarray(np.load(path, allow_pickle=False))


READERS: dict[str, Callable[[str], NDArray[Any]]] = {".npy": _npy, ".csv": _csv}


def read_array(place: str) -> NDArray[Any]:
    """The array of a .npy or .csv file, or of a .npz file as FILE.npz:NAME (the name may be left out for one array).

    Raises FileError for what cannot be read, holds no real numbers or several arrays without a name.
    """
    path, _, name = place.partition(":") if ".npz:" in place else (place, "", "")
    kind = Path(path).suffix
    if kind == ".npz":
        arrays = read_arrays(path)
        if not name and len(arrays) == 1:
            (name,) = arrays
        if name not in arrays:
            got, should = f"array {name!r}" if name else f"{len(arrays)} arrays", f"one of {', '.join(arrays)}"
            raise FileError(complaint(got, should, path, "name one: FILE.npz:NAME"))
        return arrays[name]
    if kind not in READERS:
        raise FileError(complaint(f"a file {kind or 'without a suffix'}", "one of .npy, .npz, .csv", path))
    try:
        array = READERS[kind](path)
    except (OSError, ValueError) as error:
        raise FileError(complaint(f"{error}".splitlines()[0], f"a readable {kind} file of numbers", path)) from None
    if array.dtype.kind not in "fiu":
        raise FileError(complaint(f"an array of type {array.dtype}", "real numbers", path))
    return array


def _spec(args: argparse.Namespace) -> QuantSpec:
    return QuantSpec(
        args.bits,
        signed=not args.unsigned,
        narrow=args.narrow,
        rounding=args.rounding,
        granularity=granularity(args.granularity),
    )


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist()


def _answer(solution: Solution) -> dict[str, Any]:
    return {
        "value": _plain(solution.value),
        "objective": _plain(solution.objective),
        "lower_bound": _plain(solution.lower_bound),
        "certified": bool(solution.certified),
        "evaluations": int(solution.evaluations),
    }


def _scale(args: argparse.Namespace) -> dict[str, Any]:
    x, spec = read_array(args.file), _spec(args)
    weights = None if args.weights is None else read_array(args.weights)
    free = args.zero_point == "free"
    if not free and not re.fullmatch(r"-?\d{1,10}", args.zero_point):
        raise ArgumentError(complaint(f"--zero-point {args.zero_point!r}", "an integer, or free", "refquant solve"))
    solution = solve_scale(
        x,
        spec=spec,
        objective=args.objective,
        weights=weights,
        tol=args.tol,
        p=args.p,
        zero_point=None if free else int(args.zero_point),
    )
    answer = _answer(solution) | {"zero_point": _plain(solution.zero_point)}
    return answer | {"rules": compare(x, spec=spec, solution=solution)} if args.compare else answer


def _terms(args: argparse.Namespace) -> dict[str, Any]:
    x = read_array(args.file)
    terms = encode_terms(x, spec=_spec(args), terms=args.terms, method=args.method)
    residual = np.asarray(x, np.float64) - terms.decode(np.float64)
    return {
        "scales": _plain(terms.scales),
        "codes": _plain(terms.codes),
        "squared_error": float(np.sum(residual**2)),
        "largest_error": float(np.abs(residual).max(initial=0.0)),
        "storage_bits": terms.storage_bits,
    }


def _allocate(args: argparse.Namespace) -> dict[str, Any]:
    return _answer(allocate(read_array(args.error), read_array(args.cost), args.budget))


def _run(args: argparse.Namespace) -> int:
    answer = args.solver(args)
    if args.json:
        json.dump(answer, sys.stdout, indent=1, sort_keys=True)
        print()
        return 0
    rules = answer.pop("rules", [])
    if rules:
        print(f"{'rule':20} {'median':>12} {'greatest':>12}   excess of the squared error over the certified optimum")
    for row in rules:
        median, most = (f"+{100 * row[key]:.2f} %" for key in ("median_excess", "greatest_excess"))
        print(f"{row['rule']:20} {median:>12} {most:>12}   {row['text']}")
    for name, value in answer.items():
        array = np.asarray(value)
        with np.printoptions(threshold=20, edgeitems=4, precision=6):
            print(f"{name:14} {array if array.ndim else value}")
    return 0


def add_solve(commands: Any) -> None:
    """Add the command to the parser's commands."""
    plain = argparse.ArgumentDefaultsHelpFormatter
    solve = commands.add_parser("solve", help="scales, sums of terms, allocations, with bounds", description=__doc__)
    kinds = solve.add_subparsers(dest="kind", required=True, metavar="WHAT")
    where = "a .npy or .csv file, or FILE.npz:NAME"

    def kind(name: str, text: str, solver: Callable[[argparse.Namespace], dict[str, Any]]) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = kinds.add_parser(name, help=text, description=text, formatter_class=plain)
        made.add_argument("--json", action="store_true", help="print JSON with every number in full")
        made.set_defaults(run=_run, solver=solver)
        return made

    def grid(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", metavar="FILE", help=where)
        parser.add_argument("--bits", type=int, default=4, help="bits of a code")
        parser.add_argument("--unsigned", action="store_true", help="codes from 0 on")
        parser.add_argument("--narrow", action="store_true", help="leave out the least code")
        parser.add_argument("--rounding", default="half_even", choices=MODES, help="to integers")
        parser.add_argument("--granularity", default="tensor", help="channel, tensor or group:N")

    scale = kind("scale", "the scale of least error, certified", _scale)
    grid(scale)
    scale.add_argument("--objective", default="mse", choices=OBJECTIVES, help="what is least")
    scale.add_argument("--weights", metavar="FILE", help="a weight for each element, as FILE")
    scale.add_argument("--tol", type=float, default=0.0, help="relative gap at which long rows may stop")
    scale.add_argument("--zero-point", default="0", metavar="Z", help="an integer, or free: found with the scale")
    scale.add_argument("--compare", action="store_true", help="what others' rules err beyond the certified optimum")
    scale.add_argument("--p", type=float, default=2.0, help="exponent of --objective power, 1 to 4")
    terms = kind("terms", "a tensor as a sum of low-bit terms", _terms)
    grid(terms)
    terms.add_argument("--terms", type=int, default=2, help="how many")
    terms.add_argument("--method", default="joint", choices=METHODS, help="how they are found")
    choose = kind("allocate", "one choice an item, least error under a budget", _allocate)
    choose.add_argument("error", metavar="ERROR", help=f"shape (items, choices): {where}")
    choose.add_argument("cost", metavar="COST", help="the same shape")
    choose.add_argument("--budget", type=float, required=True, help="the most that all costs together may be")
