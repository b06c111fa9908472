"""`refquant pack`: what golden packs hold; writing one into a folder; the tests of a profile for a backend to read.

They come as lines of the protocol, as a C header, or as ONNX test cases.
"""

import argparse
import sys
from collections import Counter
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from ..conform.c_header import c_header
from ..conform.cases import FAMILIES
from ..conform.operations import OPERATIONS
from ..conform.pack_write import write_pack
from ..conform.packs import Pack, level_one, read_pack
from ..conform.protocol import request_lines
from ..errors import ArgumentError, complaint
from .common import ready, write

__all__ = ["add_pack", "operations"]


def operations(text: str | None) -> list[str] | None:
    """The operations of a list with commas, None for all; raises ArgumentError for one that does not exist.

    >>> operations("quantize,dequantize")
    ['quantize', 'dequantize']
    """
    if text is None:
        return None
    names = text.split(",")
    for name in names:
        if name not in OPERATIONS:
            raise ArgumentError(complaint(f"operation {name!r}", f"one of {', '.join(OPERATIONS)}", "--ops"))
    return names


def _write(folder: Path, level: int) -> None:
    """Level 1 is that of the package, byte for byte; level 2 is made now."""
    ready(folder)
    if level == 1:
        (folder / "manifest.json").unlink(missing_ok=True)
        held = {f.name: f.read_bytes() for f in (files("refquant") / "conform" / "level1").iterdir()}
        for name in sorted(held, key=lambda name: (name == "manifest.json", name)):  # the manifest last
            (folder / name).write_bytes(held[name])
        return
    with tqdm(total=len(FAMILIES), desc="families", disable=None, file=sys.stderr) as bar:
        write_pack(folder, level=level, progress=bar.update)


def _made(level: int) -> Pack:
    if level == 1:
        return level_one()
    with TemporaryDirectory() as folder:
        _write(Path(folder), level)
        return read_pack(folder)


def _table(pack: Pack) -> str:
    """A line for each family, and for each profile."""
    sizes = Counter(test.family for test in pack.tests)
    lines = [
        f"{flag:18} {size:5}  {pack.notes[flag]['kind']}: {pack.notes[flag]['why']}" for flag, size in sizes.items()
    ]
    lines.append("")
    for profile in pack.profiles:
        asked = Counter(asked.request.op for _, asked in pack.requests(profile))
        lines.append(f"{profile:24} {asked.total():5}  {', '.join(f'{op} {n}' for op, n in asked.items())}")
    return "\n".join(lines)


def _onnx() -> Any:
    """The exporter, which needs onnx."""
    try:
        return import_module("refquant.interop.onnx")
    except ImportError:
        todo = "pip install 'refquant[onnx]'"
        raise ArgumentError(complaint("no onnx", "installed", "pack --onnx", todo)) from None


def _run(args: argparse.Namespace) -> int:
    if args.out and not (args.stream or args.header or args.onnx):
        _write(Path(args.out), args.level)
        print(f"written: {args.out}, {len(read_pack(args.out).tests)} tests")
        return 0
    pack, ops = _made(args.level) if args.pack is None else read_pack(args.pack), operations(args.ops)
    if not (args.stream or args.header or args.onnx):
        print(_table(pack))
    elif args.profile is None or args.out:
        got, where = ("no --profile" if args.profile is None else "--out"), "pack --stream, --header, --onnx"
        raise ArgumentError(complaint(got, f"one of {', '.join(pack.profiles)}, and no folder", where))
    elif args.header:
        write(Path(args.header), c_header(pack, args.profile))
    elif args.onnx:
        ready(Path(args.onnx))
        found = _onnx().write_onnx_cases(pack, Path(args.onnx), args.profile)
        reasons = Counter(found.left_out.values()).most_common()
        left = "".join(f"; {n} left out: {reason}" for reason, n in reasons)
        print(f"written: {args.onnx}, {len(found.written)} tests{left}")
    else:
        for line in request_lines(pack, args.profile, ops):
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    return 0


def add_pack(commands: Any) -> None:
    """Add the command to the parser's commands."""
    pack = commands.add_parser("pack", help="golden packs: list, write, stream to a backend", description=__doc__)
    pack.add_argument(
        "--level",
        type=int,
        default=1,
        choices=[1, 2],
        help="1: inside the package (default); 2: four times the random draws, made in minutes",
    )
    pack.add_argument("--pack", metavar="DIR", help="a folder with a pack, instead of a level")
    pack.add_argument("--out", metavar="DIR", help="write the pack's files into this folder")
    form = pack.add_mutually_exclusive_group()
    form.add_argument("--stream", action="store_true", help="print requests, one a line, for a backend to read")
    form.add_argument("--header", metavar="FILE", help="write tests of scalar operations as a C header")
    form.add_argument(
        "--onnx", metavar="DIR", help="write what ONNX can say as ONNX test cases, for onnx@21 or onnx@23"
    )
    pack.add_argument("--profile", metavar="P", help="whose semantics to ask for, with these three")
    pack.add_argument("--ops", metavar="A,B", help="ask only for these operations, with --stream")
    pack.set_defaults(run=_run)
