"""`refquant study`: the main job, from a network to scales, terms, plan and report."""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import ArgumentError, FileError, complaint
from ..net.files import read_arrays
from ..net.graph import Graph
from ..net.plan_json import plan_to_json
from ..ptq.methods import METHODS
from ..ptq.observe import RANGES
from ..ptq.resume import STATES
from ..ptq.study import Images, run_study
from ..quant.profiles import profiles
from ..zoo import NETWORKS, load_data, load_network
from .common import granularity, ready, write

__all__ = ["add_study"]


def activation_bits(text: str) -> int | None:
    """A number of bits, or `float` for activations that stay float."""
    if text == "float":
        return None
    if not re.fullmatch(r"\d{1,2}", text):
        raise ArgumentError(complaint(f"--act-bits {text!r}", "2 to 16, or float", "study"))
    return int(text)


def _images(graph: Graph, data: str | None, count: int) -> Images:
    if count < 1:
        raise ArgumentError(complaint(f"--images {count}", "at least 1", "study"))
    if data is None:
        embedded = load_data("fashion-mnist")
        if graph.input.shape != embedded.test.x.shape[1:]:
            got = f"a network that reads {graph.input.shape}, and no --data"
            raise ArgumentError(complaint(got, f"one that reads {embedded.test.x.shape[1:]}", "study", "pass --data"))
        labels = embedded.test.y
        test_labels = None if labels is None else labels[:count]
        return Images(embedded.calibration.x, embedded.test.x[:count], test_labels, embedded.calibration.y)
    arrays = read_arrays(data)
    known = {"calibration_x", "test_x", "calibration_y", "test_y"}
    missing, unknown = {"calibration_x", "test_x"} - set(arrays), set(arrays) - known
    if missing or unknown:
        got = f"arrays {sorted(arrays)}"
        raise FileError(complaint(got, f"calibration_x, test_x and optionally {sorted(known)[1::2]}", data))
    for name in ("calibration", "test"):
        x, y = arrays[f"{name}_x"], arrays.get(f"{name}_y")
        if x.dtype.kind not in "fiu" or x.shape[1:] != graph.input.shape:
            should = f"real numbers of shape (N, {', '.join(map(str, graph.input.shape))})"
            raise FileError(complaint(f"{name}_x of type {x.dtype} and shape {x.shape}", should, data))
        if y is not None and (y.dtype.kind not in "iu" or y.shape != x.shape[:1]):
            raise FileError(complaint(f"{name}_y of type {y.dtype} and shape {y.shape}", "one integer a image", data))
    own = arrays.get("test_y")
    test_labels = None if own is None else own[:count]
    return Images(arrays["calibration_x"], arrays["test_x"][:count], test_labels, arrays.get("calibration_y"))


# ---- study ----------------------------------------------------------------------------------------------------


def _bars(quiet: bool) -> tuple[Callable[[str, int, int], None], Callable[[], None]]:
    bars: dict[str, Any] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in bars:
            bars[what] = tqdm(total=total, desc=what, disable=quiet or None, file=sys.stderr)
        bars[what].update(done - bars[what].n)

    def close() -> None:
        for bar in bars.values():
            bar.close()

    return progress, close


def _study(args: argparse.Namespace) -> int:
    from ..report.page import page, table

    graph = load_network(args.network)
    images = _images(graph, args.data, args.images)
    weights, out = granularity(args.granularity), Path(args.out)
    ready(out)
    progress, close = _bars(args.json)
    try:
        study = run_study(
            graph,
            images,
            bits=(args.weight_bits, activation_bits(args.act_bits)),
            budget=args.budget,
            granularity=weights,
            profile=args.profile,
            method=args.method,
            observer=args.observer,
            resume=args.resume,
            progress=progress,
        )
    finally:
        close()
    results = json.dumps(study.results, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write(out / "plan.json", plan_to_json(study.plan) + "\n")
    write(out / "results.json", results)
    write(out / "report.html", page(study))
    if args.json:
        sys.stdout.write(results)
    else:
        print(table(study.results))
        print(f"\nwritten: {out / 'plan.json'}, {out / 'results.json'}, {out / 'report.html'}")
    return 0


def add_study(commands: Any) -> None:
    """Add the command to the parser's commands."""
    study = commands.add_parser(
        "study",
        help="the main job: network -> scales, terms, plan -> report",
        description="Quantize a network from one low-bit term a weight to lossless weights; measure every point.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    study.add_argument("--network", default="resnet", help=f"{', '.join(NETWORKS)}, or a .json file beside its .npz")
    study.add_argument("--data", help="an .npz with calibration_x, test_x, optionally calibration_y, test_y")
    study.add_argument("--weight-bits", type=int, default=3, help="bits of each weight term, 2 to 8")
    study.add_argument("--act-bits", default="8", help="bits of activations, 2 to 16, or float")
    study.add_argument("--budget", type=float, default=1.5, help="bit operations of the plan, relative to one term")
    study.add_argument("--granularity", default="channel", help="of weight scales: channel, tensor or group:N")
    study.add_argument("--profile", default="seed-nearest@1", choices=profiles(), help="named semantics")
    study.add_argument("--method", default="certified", choices=METHODS, help="how scales and terms are found")
    study.add_argument("--observer", default="minmax", choices=RANGES, help="how activation ranges are found")
    study.add_argument("--resume", help=f"folder where {', '.join(STATES)} keep what is done, and go on from")
    study.add_argument("--images", type=int, default=2000, help="held-out images to measure on")
    study.add_argument("--out", default="refquant-study", help="folder for plan.json, results.json and report.html")
    study.add_argument("--json", action="store_true", help="print results.json instead of the table")
    study.set_defaults(run=_study)
