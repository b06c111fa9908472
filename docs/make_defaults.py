"""Make docs/defaults.md from docs/defaults.json, and add to that file the cells that are missing.

python docs/make_defaults.py [--methods blockwise,...] [--cells resnet/2-4,...] [--settings N,...] [--render]

A cell is one method with one setting of its constants on one network and width.  Each is written as soon as it is
known, so a run that is broken off goes on where it stopped.  --settings: rows of the grid, by number; --render makes
no cells.  A method sees the first 512 calibration images; its plan is scored on the other 512 by the divergence of
the logits' softmax from the float network's.  No test image is loaded.
"""

import argparse
import time
from collections.abc import Collection
from functools import cache
from itertools import product
from typing import Any
from unittest.mock import patch

import numpy as np
from pages import HERE, Results, table

import refquant as rq
from refquant.arith.blas import one_blas_thread
from refquant.net.loss import divergence
from refquant.ptq import brecq, distill, sequential
from refquant.ptq.task import CALIBRATION_IMAGES, Task, make_task

RESULTS = Results("defaults.json")
MOST_SECONDS = 180
"""Of processor time, for the resnet."""

Cell = dict[str, float]
Cells = dict[str, Cell]
Setting = dict[str, Any]
"""Values by name: of a method's keywords, and in capitals of its module's constants."""

FIRST: dict[str, Setting] = {  # the defaults that the search starts from
    "blockwise": {"steps": 1500, "batch": 32, "weight": 0.1, "rate": 1e-2, "SCALE_RATE": 1e-3},
    "brecq": {"steps": 1500, "scale_steps": 300, "batch": 32, "weight": 0.1, "rate": 1e-2, "SCALE_RATE": 1e-3},
    "distill": {"steps": 500, "batch": 64, "rate": 1e-3, "scale_rate": 1e-3},
    "descent": {"ROUNDS": 4},
}
GRID: dict[str, list[Setting]] = {  # what changes
    "blockwise": [
        {},
        {"rate": 3e-2},
        {"SCALE_RATE": 3e-3},
        {"weight": 1.0},
        {"rate": 3e-2, "weight": 1.0},
        {"rate": 1e-1},
    ],
    "brecq": [
        {},
        {"scale_steps": 1000},
        {"SCALE_RATE": 3e-3},
        {"SCALE_RATE": 3e-4},
        {"rate": 3e-2},
    ],
    "distill": [
        {},
        {"rate": 3e-3},
        {"scale_rate": 3e-4},
        {"steps": 1000},
        {"steps": 200},
        {"steps": 100},
    ],
    "descent": [{}, {"ROUNDS": 2}, {"ROUNDS": 8}],
}
DECIDING = ("resnet/2-4", "cnn/2-4", "mlp/2-4")
CELLS = (*DECIDING, "resnet/4-4", "resnet/2-8", "cnn/4-4", "cnn/2-8", "mlp/2-8")


# ---- cells ----------------------------------------------------------------------------------------------------


def cell_key(method: str, cell: str, setting: Setting) -> str:
    return f"{method}/{cell}/" + ",".join(f"{name}={value:g}" for name, value in sorted(setting.items()))


def task_of(cell: str, floats: bool = False) -> Task:
    """The task of a cell; with float activations, if asked for."""
    network, bits = cell.split("/")
    w, a = map(int, bits.split("-"))
    images = rq.load_data("fashion-mnist").calibration.x
    return make_task(rq.load_network(network), images, bits=(w, None if floats else a))


@cache
def reference(network: str) -> np.ndarray:
    """The float network's logits on the spare calibration images."""
    task = task_of(f"{network}/4-8")
    with one_blas_thread():
        return rq.forward(task.graph, rq.load_data("fashion-mnist").calibration.x[CALIBRATION_IMAGES:]).astype(float)


@cache
def weights(cell: str, **kw: Any) -> tuple[rq.QuantPlan, float]:
    """The first half of `brecq`, which knows nothing of activations, and its seconds."""
    start = time.process_time()
    return brecq.brecq(task_of(cell, floats=True), **kw), time.process_time() - start


@cache
def blocks(cell: str) -> tuple[rq.QuantPlan, float]:
    """What `distill` starts from, by the default of `blockwise`, and its seconds."""
    start = time.process_time()
    return brecq.blockwise(task_of(cell)), time.process_time() - start


def run(method: str, cell: str, setting: Setting) -> tuple[rq.QuantPlan, float]:
    """The plan, and the seconds of processor time."""
    kw = {name: value for name, value in setting.items() if not name.isupper()}
    start, seconds = time.process_time(), 0.0
    if method == "descent":
        plan = sequential.sequential(task_of(cell))
    elif method == "blockwise":
        plan = brecq.blockwise(task_of(cell), **kw)
    elif method == "brecq":
        done, seconds = weights(
            cell.replace("-8", "-4"), **{k: setting[k] for k in ("rate", "steps", "batch", "weight")}
        )
        start = time.process_time()
        plan = brecq.brecq(task_of(cell), done=done, **kw)
    else:
        done, seconds = blocks(cell)
        start = time.process_time()
        plan = distill.distill(task_of(cell), done, **kw)
    return plan, seconds + time.process_time() - start


def measured(method: str, cell: str, setting: Setting) -> Cell:
    module = sequential if method == "descent" else brecq
    constants = {name: value for name, value in setting.items() if name.isupper()}
    with patch.dict(vars(module), constants):
        plan, seconds = run(method, cell, setting)
    network, spare = cell.split("/")[0], rq.load_data("fashion-mnist").calibration.x[CALIBRATION_IMAGES:]
    floats = reference(network)
    with one_blas_thread():
        logits = rq.forward(rq.load_network(network), spare, plan, mode="fake").astype(float)
    agree = np.mean(logits.argmax(axis=1) == floats.argmax(axis=1))
    value = divergence(logits, floats).value
    return {"divergence": value, "agreement": float(agree), "seconds": round(seconds, 1)}


# ---- the document ---------------------------------------------------------------------------------------------


def shown(method: str, change: Setting) -> str:
    """A change of the first setting, or its values."""
    named = change or FIRST[method]
    return ", ".join(f"{name} {value:g}" for name, value in named.items())


def row_of(cells: Cells, method: str, change: Setting) -> list[Cell]:
    """A setting's cells, {} where not measured."""
    return [cells.get(cell_key(method, cell, FIRST[method] | change), {}) for cell in CELLS]


def mean(cells: Cells, method: str, change: Setting, among: Collection[str] = CELLS) -> float:
    """The geometric mean of a setting's divergences in units of the first's, over what is measured; else NaN."""
    rows = zip(CELLS, row_of(cells, method, change), row_of(cells, method, {}), strict=True)
    logs = [np.log(one["divergence"] / first["divergence"]) for cell, one, first in rows if cell in among and one]
    return float(np.exp(np.mean(logs))) if logs else float("nan")


def slowest(row: list[Cell]) -> float:
    """The most on the resnet."""
    return max([one["seconds"] for one, cell in zip(row, CELLS, strict=True) if one and "resnet" in cell], default=0.0)


def chosen(cells: Cells, method: str) -> Setting:
    """The change with the least mean over `DECIDING`, among those measured in all of it and quick enough."""
    rows = [(change, row_of(cells, method, change)) for change in GRID[method]]
    able = [change for change, row in rows if all(row[: len(DECIDING)]) and slowest(row) < MOST_SECONDS]
    return min(able, key=lambda change: mean(cells, method, change, DECIDING), default={})


def width(cell: str) -> str:
    network, bits = cell.split("/")
    return f"{network} W{bits.replace('-', 'A')}"


def section(cells: Cells, method: str) -> str:
    best, rows = chosen(cells, method), []
    for change in GRID[method]:
        row, name = row_of(cells, method, change), shown(method, change)
        values = [f"{one['divergence']:.4f} ({100 * one['agreement']:.1f})" if one else "" for one in row]
        means = [f"{mean(cells, method, change, among):.3f}" for among in (DECIDING, CELLS)]
        rows.append([f"**{name}**" if change == best else name, *values, *means, f"{slowest(row):.0f}"])
    return f"## {method}\n\n" + table(["setting", *map(width, CELLS), "first three", "all", "seconds"], rows)


def document(cells: Cells) -> str:
    return "\n".join([HEAD, *(section(cells, method) for method in GRID)])


HEAD = f"""# How the defaults of the learned methods were chosen

Made by `docs/make_defaults.py`; do not edit. A method sees the first {CALIBRATION_IMAGES} calibration images; its plan
is scored on the other {CALIBRATION_IMAGES}, which are of the training split, too. No test image is loaded.

A score is the divergence KL(softmax of the float logits || softmax of the quantized ones), a mean over images; beside
it, the percentage of images with the float network's class. Rows change what they name and leave the rest as in the
first row. The means are geometric, of a row's scores in units of the first row's, over the first three columns and
over all that are measured; `seconds` is processor time, at most, on the resnet. The default, in bold, has the least
mean over the first three columns among rows that are measured there and took less than {MOST_SECONDS} s, else it is
the first row; other columns were measured for it and for the first row, rows that looked bad on the resnet, or cost
the time that others wait for, nowhere else. Each cell is one run, and another seed moves a score by about a tenth.

The first rows were settled when accuracies on test images had been seen; the choice between rows was not.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(GRID))
    parser.add_argument("--cells", default=",".join(CELLS))
    parser.add_argument("--settings", default=None)
    parser.add_argument("--render", action="store_true")
    args = parser.parse_args()
    for cell, method in () if args.render else product(args.cells.split(","), args.methods.split(",")):
        rows = range(len(GRID[method])) if args.settings is None else map(int, args.settings.split(","))
        for setting in (FIRST[method] | GRID[method][row] for row in rows):
            key = cell_key(method, cell, setting)
            if key not in RESULTS.load():
                RESULTS.save(key, measured(method, cell, setting))
                print(key, RESULTS.load()[key], flush=True)
    (HERE / "defaults.md").write_text(document(RESULTS.load()), encoding="utf-8")


if __name__ == "__main__":
    main()
