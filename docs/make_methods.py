"""Make docs/methods.md from docs/methods.json, and add to that file the cells that are missing.

python docs/make_methods.py [--networks resnet,cnn,mlp] [--methods gpfq,...] [--bits 4-8,...] [--budgets 1,1.5,...]
                            [--seeds N] [--render]

A cell is one network, method, width and budget.  Each is written as soon as it is known, so a run that is broken off
goes on where it stopped; cells that are there are not made again.  --render makes no cells.
Every choice is made from the first 512 calibration images; the 10,000 test images are looked at once a cell.
"""

import argparse
import json
import os
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import refquant as rq
from refquant.arith.blas import one_blas_thread
from refquant.net.graph import macs
from refquant.net.loss import divergence
from refquant.ptq.complexity import complexity
from refquant.ptq.lossless import lossless_levels, paired_interval
from refquant.ptq.methods import METHODS, run_method
from refquant.ptq.study import wilson
from refquant.ptq.task import make_task

HERE = Path(__file__).parent
RESULTS = HERE / "methods.json"
NETWORKS = ("resnet", "cnn", "mlp")
BITS = ("4-8", "3-8", "2-8", "4-4", "2-4")
RANDOM = ("adaquant", "brecq", "blockwise", "blockwise-distilled")
"""Methods that draw random numbers: these have a cell for each seed."""

PEERS = {  # best held-out accuracy of existing tools in these conditions, over variants with the test set in view
    "resnet": {"4-8": 92.09, "3-8": 91.63, "2-8": 90.83, "4-4": 91.36, "2-4": 90.06},
    "cnn": {"4-8": 91.76, "3-8": 91.59, "2-8": 90.81, "4-4": 91.53, "2-4": 90.20},
    "mlp": {"4-8": 89.92, "3-8": 89.77, "2-8": 89.48, "4-4": 89.82, "2-4": 88.83},
}

Cell = dict[str, Any]


def load() -> dict[str, Cell]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def save(key: str, cell: Cell) -> None:
    """Add one cell: read, written beside and renamed, so that a broken run leaves a whole file."""
    beside = RESULTS.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps({**load(), key: cell}, indent=1, sort_keys=True) + "\n")
    beside.replace(RESULTS)


def measured(network: str, method: str, bits: tuple[int, int], budget: float, seed: int) -> Cell:
    data, graph = rq.load_data("fashion-mnist"), rq.load_network(network)
    labels = data.test.y
    start = time.perf_counter()
    task = make_task(
        graph,
        data.calibration.x,
        labels=data.calibration.y,
        bits=bits,
        budget=None if budget == 1 else budget,
        seed=seed,
    )
    plan = run_method(method, task)
    seconds = time.perf_counter() - start
    with one_blas_thread():
        logits, reference = rq.forward(graph, data.test.x, plan, mode="fake"), rq.forward(task.graph, data.test.x)
        seen = rq.forward(graph, task.images, plan, mode="fake").astype(float)
    right, float_right = (z.argmax(axis=1) == labels for z in (logits, reference))
    P, single = complexity(task.graph, plan), sum(macs(task.graph).values()) * bits[0] * bits[1]
    low, high = wilson(int(right.sum()), len(right))
    return {
        "accuracy": float(right.mean()),
        "interval": [low, high],
        "difference_to_float": list(paired_interval(right, float_right)),
        "other_classes": int((logits.argmax(axis=1) != reference.argmax(axis=1)).sum()),
        "levels": lossless_levels(logits, reference, labels),
        "calibration_divergence": divergence(seen, task.trace[task.graph.output].astype(float)).value,
        "operations": P.bit_operations / single,
        "bit_operations": P.bit_operations,
        "weight_bits": P.weight_bits,
        "seconds": round(seconds, 1),
    }


# ---- the document ---------------------------------------------------------------------------------------------


def key(network: str, method: str, bits: str, budget: float, seed: int) -> str:
    return f"{network}/{method}/{bits}/{budget:g}/{seed}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def of(cells: dict[str, Cell], network: str, method: str, bits: str, budget: float) -> list[Cell]:
    prefix = f"{network}/{method}/{bits}/{budget:g}/"
    return [cell for name, cell in sorted(cells.items()) if name.startswith(prefix)]


def shown(found: list[Cell]) -> str:
    """Accuracy in percent: of one cell, or mean and range of several seeds."""
    if not found:
        return ""
    values = [100 * cell["accuracy"] for cell in found]
    mean = f"{np.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} to {max(values):.2f}, {len(values)} seeds)"


def single_terms(cells: dict[str, Cell]) -> str:
    text = (
        "## One term a weight\n\nHeld-out accuracy in percent on the 10,000 test images; a 95 % interval is about "
        "+-0.55 points, that of a difference between methods narrower. Weights by output channel, all layers, "
        "full-range grids (multipoint: symmetric); inputs of layers by tensor with zero point; skip paths and logits "
        "float. The last row is the best that existing tools reached in these conditions, over each tool's variants "
        "with the test set in view.\n"
    )
    for network in NETWORKS:
        made = [m for m in METHODS if any(of(cells, network, m, b, 1) for b in BITS)]
        rows = [[m, *(shown(of(cells, network, m, b, 1)) for b in BITS)] for m in made]
        rows.append(["best existing tool", *(f"{PEERS[network][b]:.2f}" for b in BITS)])
        text += f"\n### {network}\n\n" + table(["method", *(f"W{b.replace('-', 'A')}" for b in BITS)], rows)
    return text


def verdicts(cells: dict[str, Cell]) -> str:
    """Against the peers: for each cell the best method and by how much it is above or below."""
    rows = []
    for network, bits in product(NETWORKS, BITS):
        means = {
            m: np.mean([c["accuracy"] for c in of(cells, network, m, bits, 1)])
            for m in METHODS
            if of(cells, network, m, bits, 1)
        }
        if means:
            best = max(means, key=lambda m: means[m])
            gap = 100 * means[best] - PEERS[network][bits]
            rows.append([network, f"W{bits.replace('-', 'A')}", best, f"{100 * means[best]:.2f}", f"{gap:+.2f}"])
    head = ["network", "width", "best method here", "accuracy", "less the best existing tool"]
    return (
        "\n## Against existing tools\n\nThe method named is the best on the test images, as the tools' figures are.\n\n"
        + table(head, rows)
    )


def with_terms(cells: dict[str, Cell]) -> str:
    rows = []
    for name, cell in sorted(cells.items(), key=lambda kv: (kv[0].split("/")[:3], float(kv[0].split("/")[3]))):
        network, method, bits, budget, _ = name.split("/")
        if float(budget) > 1:
            low, high = cell["difference_to_float"]
            rows.append(
                [
                    network,
                    method,
                    f"W{bits.replace('-', 'A')}",
                    f"{cell['operations']:.3f}",
                    f"{cell['bit_operations'] / (4 * 8) / macs_of(network):.3f}",
                    f"{100 * cell['accuracy']:.2f}",
                    f"{100 * low:+.2f} to {100 * high:+.2f}",
                    str(cell["other_classes"]),
                ]
            )
    head = [
        "network",
        "method",
        "width of a term",
        "P / single",
        "P / single W4A8",
        "accuracy",
        "less float, 95 %",
        "classes unlike float's",
    ]
    head_text = (
        "\n## With terms\n\nThe same methods under a budget: bit operations, relative to one term throughout and to "
        "one term of W4A8.\n\n"
    )
    return head_text + table(head, rows)


def macs_of(network: str) -> int:
    return sum(macs(rq.load_network(network)).values())


def times(cells: dict[str, Cell]) -> str:
    rows = []
    for method in METHODS:
        row = [method]
        for network in NETWORKS:
            found = [c["seconds"] for b in BITS for c in of(cells, network, method, b, 1)]
            row.append(f"{np.median(found):.0f}" if found else "")
        if any(row[1:]):
            rows.append(row)
    return (
        "\n## Time\n\nMedian seconds of a method, one BLAS thread, on a machine that did other work: an order of "
        "magnitude.\n\n" + table(["method", *NETWORKS], rows)
    )


def render(cells: dict[str, Cell]) -> str:
    wanted = [(n, m, b) for n, m, b in product(NETWORKS, METHODS, BITS)]
    missing = [f"{n} {m} W{b.replace('-', 'A')}" for n, m, b in wanted if not of(cells, n, m, b, 1)]
    note = f"\nNot measured yet, {len(missing)} of {len(wanted)} cells: {', '.join(missing) or 'none'}.\n"
    return (
        "# Methods compared\n\nMade by `docs/make_methods.py`; do not edit. Calibration: the first 512 embedded images "
        "of the training split, without labels except for `lapq` and the weightings that say so. No choice in a run "
        "looks at a test image. But accuracies on the test images were seen while defaults of `descent`, `brecq`, "
        "`blockwise` and `blockwise-distilled` were chosen, so what these are ahead by is optimistic by some tenths of "
        "a point, as the tools' figures are.\n\n"
        + single_terms(cells)
        + verdicts(cells)
        + with_terms(cells)
        + times(cells)
        + note
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--bits", default=",".join(BITS))
    parser.add_argument("--budgets", default="1")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--render", action="store_true")
    args = parser.parse_args()
    lists = [getattr(args, name).split(",") for name in ("networks", "methods", "bits", "budgets")]
    for network, method, bits, budget in () if args.render else product(*lists):
        for seed in range(args.seeds if method in RANDOM else 1):
            name = key(network, method, bits, float(budget), seed)
            if name not in load():
                w, a = map(int, bits.split("-"))
                cell = measured(network, method, (w, a), float(budget), seed)
                save(name, cell)
                print(name, cell["accuracy"], cell["seconds"], flush=True)
    (HERE / "methods.md").write_text(render(load()), encoding="utf-8")


if __name__ == "__main__":
    main()
