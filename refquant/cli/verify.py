"""`refquant verify`: a backend held to a golden pack, and what its wrong answers have in common.

A backend is a program that speaks the protocol (`--command`), a Python function of a Request (`--callable`), or the
answers of either, from standard input (`--stream`) or a file (`--answers`).
"""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..conform.commands import function_at
from ..conform.known import read_known
from ..conform.packs import Pack, level_one, read_pack
from ..conform.program import Program
from ..conform.protocol import read_answers
from ..conform.verify import verify
from ..errors import FileError, complaint
from .common import write
from .pack import operations

__all__ = ["add_verify"]


def _answers(place: str, pack: Pack, profile: str) -> Any:
    with open(place, "rb") as source:
        return read_answers(source, pack, profile)


SOURCES: dict[str, Callable[[argparse.Namespace, Pack], AbstractContextManager[Any]]] = {
    "command": lambda args, pack: Program(args.command, timeout=args.timeout),
    "callable": lambda args, pack: nullcontext(function_at(args.callable, "--callable")),
    "stream": lambda args, pack: nullcontext(read_answers(sys.stdin.buffer, pack, args.profile)),
    "answers": lambda args, pack: nullcontext(_answers(args.answers, pack, args.profile)),
}
"""argument -> the backend, or its answers by test."""


def _text(place: str) -> str:
    try:
        return Path(place).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise FileError(complaint("other bytes", "text in UTF-8", place)) from None


def _run(args: argparse.Namespace) -> int:
    pack, ops = level_one() if args.pack is None else read_pack(args.pack), operations(args.ops)
    known = () if args.known is None else read_known(_text(args.known), args.known)
    asked = sum(ops is None or a.request.op in ops for _, a in pack.requests(args.profile))
    (source,) = (s for name, s in SOURCES.items() if getattr(args, name))
    with source(args, pack) as backend, tqdm(total=asked, desc="tests", disable=None, file=sys.stderr) as bar:
        report = verify(backend, pack, args.profile, ops=ops, known=known, progress=bar.update)
    if args.json is not None:
        text = json.dumps(report.to_json(), indent=1) + "\n"
        sys.stdout.write(text) if args.json == "-" else write(Path(args.json), text)
    if args.json != "-":
        print(report)
    return 0 if report.conforms else 1


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 1e6:
        raise ValueError
    return seconds


def add_verify(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser("verify", help="hold a backend to a golden pack", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--command", metavar="CMD", help="a program that speaks the protocol")
    source.add_argument("--callable", metavar="MODULE:FUNCTION", help="a Python function of a Request")
    source.add_argument("--stream", action="store_true", help="answers on standard input")
    source.add_argument("--answers", metavar="FILE", help="answers in a file")
    parser.add_argument("--profile", metavar="P", required=True, help="the semantics that it should have")
    parser.add_argument("--pack", metavar="DIR", help="a folder with a pack (default: level 1)")
    parser.add_argument("--ops", metavar="A,B", help="ask only for these operations")
    parser.add_argument("--known", metavar="FILE", help="accepted deviations: OPERATION | DEVIATION | REASON a line")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON too; -: print it instead")
    parser.add_argument("--timeout", metavar="S", type=_seconds, default=30.0, help="seconds an answer (default 30)")
    parser.set_defaults(run=_run)
