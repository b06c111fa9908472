"""Make docs/methods.md from docs/methods.json, and add to that file the cells that are missing.

python docs/make_methods.py [--networks resnet,cnn,mlp] [--methods gpfq,...] [--bits 4-8,...] [--budgets 1,1.5,...]
                            [--seeds N] [--render]

A cell is one network, method, width, budget and seed.  Each is written as soon as it is known, so a run that is broken
off goes on where it stopped; cells that are there are not made again.  --render makes no cells.  The method `sums`
encodes weights alone in up to 20 terms and places the terms of weights and activations: the way to lossless.
Every choice is made from the first 512 calibration images; 512 further ones of the training split say which method one
would choose without a test image; the 10,000 test images are looked at once a cell.
"""

import argparse
import time
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from methods_document import BITS, NETWORKS, RANDOM, SEEDS, cell_key, render
from pages import HERE, Cell, Results

import refquant as rq
from refquant.arith.blas import one_blas_thread
from refquant.net.graph import macs
from refquant.net.loss import divergence
from refquant.net.op import Array
from refquant.ptq.complexity import complexity
from refquant.ptq.distill import distill
from refquant.ptq.lossless import find_places, lossless_levels, paired_interval
from refquant.ptq.methods import METHODS, run_method
from refquant.ptq.study import wilson
from refquant.ptq.task import CALIBRATION_IMAGES, Task, make_task

RESULTS = Results("methods.json")
SUMS_TERMS = 20


@cache
def reference(network: str) -> tuple[Array, Array]:
    """The float network's logits on the spare calibration images and on the test images."""
    data, graph = rq.load_data("fashion-mnist"), rq.load_network(network)
    task = make_task(graph, data.calibration.x[:1])
    with one_blas_thread():
        spare = rq.forward(task.graph, data.calibration.x[CALIBRATION_IMAGES:])
        return spare, rq.forward(task.graph, data.test.x)


def sums(task: Task) -> rq.QuantPlan:
    """Each weight encoded alone, in as many terms as the budget allows, as are activations."""
    places = find_places(task, weight_terms=SUMS_TERMS)
    placed = places.placed(places.place(task.budget or 1.0))
    return rq.QuantPlan({n.name: placed.encode(n) for n in placed.graph.linear_nodes}, placed.activations)


BLOCKWISE: dict[Any, tuple[rq.QuantPlan, float]] = {}
"""Plans of `blockwise` and their seconds, of this run: `blockwise-distilled` begins with the same."""


def plan_of(method: str, task: Task, case: Any) -> tuple[rq.QuantPlan, float]:
    """The plan, and the processor seconds that it takes."""
    start, before = time.process_time(), 0.0
    if method == "blockwise-distilled" and case in BLOCKWISE:
        plan, before = BLOCKWISE[case]
        plan = distill(task, plan)
    else:
        plan = sums(task) if method == "sums" else run_method(method, task)
    seconds = before + time.process_time() - start
    if method == "blockwise":
        BLOCKWISE[case] = plan, seconds
    return plan, seconds


def measured(network: str, method: str, bits: tuple[int, int], budget: float, seed: int) -> Cell:
    data, graph = rq.load_data("fashion-mnist"), rq.load_network(network)
    labels = data.test.y
    spare, floats = reference(network)
    task = make_task(
        graph,
        data.calibration.x,
        labels=data.calibration.y,
        bits=bits,
        budget=None if budget == 1 else budget,
        seed=seed,
    )
    plan, seconds = plan_of(method, task, (network, bits, budget, seed))
    with one_blas_thread():
        logits = rq.forward(graph, data.test.x, plan, mode="fake")
        beside = rq.forward(graph, data.calibration.x[CALIBRATION_IMAGES:], plan, mode="fake").astype(float)
        seen = rq.forward(graph, task.images, plan, mode="fake").astype(float)
    right, float_right = (z.argmax(axis=1) == labels for z in (logits, floats))
    P, single = complexity(task.graph, plan), sum(macs(task.graph).values()) * bits[0] * bits[1]
    low, high = wilson(int(right.sum()), len(right))
    return {
        "accuracy": float(right.mean()),
        "interval": [low, high],
        "difference_to_float": list(paired_interval(right, float_right)),
        "other_classes": int((logits.argmax(axis=1) != floats.argmax(axis=1)).sum()),
        "levels": lossless_levels(logits, floats, labels),
        "calibration_divergence": divergence(seen, task.trace[task.graph.output].astype(float)).value,
        "spare_divergence": divergence(beside, spare.astype(float)).value,
        "operations": P.bit_operations / single,
        "bit_operations": P.bit_operations,
        "weight_bits": P.weight_bits,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--bits", default=",".join(BITS))
    parser.add_argument("--budgets", default="1")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--render", action="store_true")
    args = parser.parse_args()
    lists = [getattr(args, name).split(",") for name in ("networks", "bits", "budgets", "methods")]
    for seed in () if args.render else range(args.seeds):
        for network, bits, budget, method in product(*lists):
            if seed and method not in RANDOM:
                continue
            name = cell_key(network, method, bits, float(budget), seed)
            if "spare_divergence" not in RESULTS.load().get(name, {}):
                w, a = map(int, bits.split("-"))
                cell = measured(network, method, (w, a), float(budget), seed)
                RESULTS.save(name, cell)
                print(name, cell["accuracy"], np.round(cell["spare_divergence"], 4), cell["seconds"], flush=True)
    render(RESULTS.load(), HERE)


if __name__ == "__main__":
    main()
