"""The command line.  Exit status: 0 right, 1 the thing checked is wrong, 2 bad input."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import numpy as np

from ..errors import RefquantError
from .diagnose import add_diagnose
from .pack import add_pack
from .solve import add_solve
from .study import add_study
from .sweep import add_sweep
from .verify import add_verify

__all__ = ["main"]


class _Guarantees(argparse.Action):
    """Print the ledger and leave, as --version does."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **keywords: Any) -> None:
        text = (files("refquant") / "ledger.json").read_text(encoding="utf-8")
        if args[1] == "json":
            print(text, end="")
            parser.exit()
        rows = json.loads(text)
        for kind in dict.fromkeys(row["kind"] for row in rows):
            print(f"{kind}\n")
            for row in (row for row in rows if row["kind"] == kind):
                clauses = f" [{row['clauses']}]" if row["clauses"] else ""
                print(f"  {row['statement']}{clauses}\n      {row['where']}")
            print()
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="refquant", description="The ground truth for neural-network quantization.")
    parser.add_argument("--version", action="version", version=f"refquant {version('refquant')}")
    parser.add_argument(
        "--guarantees",
        action=_Guarantees,
        nargs="?",
        choices=["table", "json"],
        help="print what is proved, exhaustive, sampled, checked, and seconded by third parties; then leave",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_study(commands)
    add_solve(commands)
    add_pack(commands)
    add_verify(commands)
    add_diagnose(commands)
    add_sweep(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    try:
        try:
            args = _parser().parse_args(argv)
            with np.errstate(all="ignore"):
                return int(args.run(args))
        finally:
            print(end="", flush=True)  # now: an output that takes no more is an error like others
    except RefquantError as error:
        print(f"refquant: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("refquant: interrupted", file=sys.stderr)
        return 130
    except MemoryError:
        print("refquant: error: out of memory: take fewer --images", file=sys.stderr)
        return 2
    except OSError as error:
        _drop_output()
        if not isinstance(error, BrokenPipeError):  # a reader that has read enough, such as head, hears nothing
            print(f"refquant: error: {error.strerror or error}", file=sys.stderr)
        return 2


def _drop_output() -> None:
    """Point standard output nowhere, or Python would try, and fail, to write what is left of it when it ends."""
    with suppress(OSError, ValueError):  # not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
