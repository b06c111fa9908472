"""`refquant sweep`: a backend held to a scalar rule on all 2^32 inputs.

Without a backend it is refquant's own array form that is swept.  A sweep that is stopped goes on where it was, if it
has a `--state` file.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..conform.case import Case
from ..conform.commands import Filter, Named, Spoken, function_at
from ..conform.exhaustive import BLOCK, BLOCKS, diagnose_sweep, sweep
from ..conform.operations import evaluate
from ..conform.requests import SPOKEN, integer_of, request_of
from ..conform.step_function import SCALAR, ScalarRule
from ..errors import ArgumentError, complaint
from .common import write

__all__ = ["add_sweep"]


def _rule(args: argparse.Namespace) -> ScalarRule:
    case = Case(args.op, {}, args.bits, not args.unsigned)
    request = request_of(case, args.profile) if args.profile in SPOKEN[args.op] else None
    if request is None:
        got = f"{args.profile} of {args.bits} bits"
        should = f"one of {', '.join(SPOKEN[args.op])}, and a width that it has"
        raise ArgumentError(complaint(got, should, f"sweep --op {args.op}"))
    return ScalarRule(args.op, request.spec, args.scale, args.zero_point, integer_of(args.profile))


def _backend(args: argparse.Namespace) -> tuple[Any, str]:
    """The backend, and its name in a state file."""
    if args.filter:
        return Filter(args.filter, args.timeout), f"filter {args.filter}"
    if args.command:
        return Spoken(args.command, args.timeout), f"command {args.command}"
    if args.callable:
        function_at(args.callable, "--callable")  # a wrong place is said before any work
        return Named(args.callable), f"callable {args.callable}"
    return evaluate, "refquant"


@contextmanager
def _executor(args: argparse.Namespace) -> Iterator[Executor | None]:
    """Processes, a Dask cluster, or none."""
    if args.cluster is not None:
        try:
            distributed: Any = import_module("distributed")
        except ImportError:
            todo = "pip install 'refquant[distributed]'"
            raise ArgumentError(complaint("no dask.distributed", "installed", "sweep --cluster", todo)) from None
        try:
            client = distributed.Client(args.cluster, timeout="20s")
        except (OSError, ValueError, TimeoutError) as error:
            raise ArgumentError(complaint(f"{error}", "the address of a scheduler", "sweep --cluster")) from None
        with client, client.get_executor() as executor:
            yield executor
    elif args.jobs > 1:
        with ProcessPoolExecutor(args.jobs, get_context("spawn")) as executor:
            yield executor
    else:
        yield None


def _run(args: argparse.Namespace) -> int:
    rule, (backend, name) = _rule(args), _backend(args)
    state = None if args.state is None else Path(args.state)
    bar = tqdm(total=len(args.blocks) * BLOCK, desc="inputs", unit="", unit_scale=True, disable=None, file=sys.stderr)
    with bar, _executor(args) as executor:
        found = sweep(
            rule,
            backend,
            blocks=args.blocks,
            chunk=args.chunk,
            executor=executor,
            state=state,
            name=name,
            progress=bar.update,
        )
    diagnosis = None if found.conforms else diagnose_sweep(found, backend)
    if args.json is not None:
        explanations = [e.name for e in diagnosis.explanations] if diagnosis else []
        text = json.dumps({**found.to_json(), "backend": name, "explanations": explanations}, indent=1) + "\n"
        sys.stdout.write(text) if args.json == "-" else write(Path(args.json), text)
    if args.json != "-":
        print(found)
        if diagnosis is not None:
            print(diagnosis)
    return 0 if found.conforms else 1


# ---- arguments ------------------------------------------------------------------------------------------------


def _number(text: str) -> float:
    return float.fromhex(text) if "0x" in text.lower() else float(text)


def _blocks(text: str) -> range:
    ends = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text)
    if ends is None or not int(ends[1]) < int(ends[2]) <= BLOCKS:
        raise ValueError
    return range(int(ends[1]), int(ends[2]))


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def _seconds(text: str) -> float:
    if not 0 < float(text) < 1e6:
        raise ValueError
    return float(text)


def add_sweep(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser("sweep", help="hold a backend to a rule on all 2^32 inputs", description=__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--filter", metavar="CMD", help="a program: 32-bit inputs on stdin, 32-bit answers on stdout")
    source.add_argument("--command", metavar="CMD", help="a program that speaks the protocol of verify")
    source.add_argument("--callable", metavar="MODULE:FUNCTION", help="a Python function of a Request")
    parser.add_argument("--op", choices=list(SCALAR), default="quantize", help="the operation (default: quantize)")
    parser.add_argument("--profile", metavar="P", required=True, help="the semantics that it should have")
    parser.add_argument("--scale", metavar="S", type=_number, required=True, help="0.1 or 0x1.8p-4; a multiplier too")
    parser.add_argument("--zero-point", metavar="Z", type=int, default=0, help="in codes (default 0)")
    parser.add_argument("--bits", metavar="B", type=_positive, default=8, help="of codes, up to 16 (default 8)")
    parser.add_argument("--unsigned", action="store_true", help="codes from 0")
    workers = parser.add_mutually_exclusive_group()
    workers.add_argument("--jobs", metavar="N", type=_positive, default=os.cpu_count() or 1, help="processes (all)")
    workers.add_argument("--cluster", metavar="ADDRESS", help="a Dask scheduler, such as tcp://host:8786")
    parser.add_argument("--state", metavar="FILE", help="where to note what is done, and to go on from")
    everything = f"{BLOCK} inputs each; all: 0:{BLOCKS}"
    parser.add_argument("--blocks", metavar="A:B", type=_blocks, default=range(BLOCKS), help=everything)
    parser.add_argument("--chunk", metavar="N", type=_positive, default=BLOCK, help="inputs a request, a power of 2")
    parser.add_argument("--timeout", metavar="S", type=_seconds, default=600.0, help="seconds a request (default 600)")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON too; -: print it instead")
    parser.set_defaults(run=_run)
