"""Make docs/claims.md from docs/claims.json, and add to that file the cells that are missing.

python docs/make_claims.py [--only lapq,adaquant,...] [--render]

A cell is one measurement: a kind, a network, a setting and a seed.  Each is written as soon as it is known, so a run
that is broken off goes on where it stopped.  --render makes no cells.  Seed s calibrates with images N s to N s + N - 1
of the first 512 embedded ones of the training split, and draws random numbers from generator s, so the spread over
seeds is that of images and of chance.  Scores are taken on the other 512 embedded images ("spare"), whose labels no
method sees; no test image is loaded.  Counts of images and steps are small: all cells together take some minutes.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import product

from claims_cases import BUDGETS, SEEDS
from claims_cells import (
    Cell,
    decay_cell,
    drivers_cell,
    layers_cell,
    light_cell,
    norms_cell,
    parts_cell,
    points_cell,
    programme_cell,
    rounding_cell,
    scales_cell,
    tuned_cell,
    unmoved_cell,
    weighting_cell,
)
from claims_document import render
from claims_mixed import mixed_cell
from pages import HERE, Results

RESULTS = Results("claims.json")


# ---- all ------------------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[Callable[[str, str, int], Cell], tuple[str, ...], tuple[str, ...], int]] = {
    "decay": (decay_cell, ("mlp", "cnn", "resnet"), ("2", "3", "4"), 1),
    "programme": (programme_cell, ("mlp", "cnn"), ("all",), SEEDS),
    "points": (points_cell, ("mlp", "cnn", "resnet"), BUDGETS, SEEDS),
    "norms": (norms_cell, ("mlp", "cnn", "resnet"), ("4", "3", "2"), SEEDS),
    "lapq": (scales_cell, ("mlp", "resnet"), ("4-4", "3-3", "2-2"), SEEDS),
    "parts": (
        parts_cell,
        ("resnet",),
        tuple(f"{g}-{n}" for n in (32, 128) for g in ("layer", "block", "stage", "network", "network4")),
        SEEDS,
    ),
    "weighting": (weighting_cell, ("mlp", "cnn", "resnet"), ("mse", "fisher", "fisher_code"), SEEDS),
    "adaquant": (layers_cell, ("mlp", "cnn", "resnet"), ("32",), SEEDS),
    "light": (light_cell, ("mlp", "cnn", "resnet"), ("32",), SEEDS),
    "unmoved": (unmoved_cell, ("mlp", "cnn", "resnet"), ("all",), SEEDS),
    "mixed": (mixed_cell, ("resnet",), ("2,4,8", "2,3,4,8"), SEEDS),
    "tuned": (tuned_cell, ("mlp", "cnn", "resnet"), ("2",), SEEDS),
    "drivers": (drivers_cell, ("mlp", "resnet"), ("4-4", "2-2"), SEEDS),
    "rounding": (rounding_cell, ("mlp", "cnn"), ("4", "3", "2"), SEEDS),
}
"""kind -> its measurement, networks, settings, how many seeds."""


def wanted(only: list[str]) -> Iterator[tuple[str, str, str, int]]:
    for kind in only:
        _, networks, settings, seeds = KINDS[kind]
        yield from ((kind, *rest) for rest in product(networks, settings, range(seeds)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default=",".join(KINDS))
    parser.add_argument("--render", action="store_true")
    args = parser.parse_args()
    for kind, network, setting, seed in [] if args.render else wanted(args.only.split(",")):
        key = f"{kind}/{network}/{setting}/{seed}"
        if key not in RESULTS.load():
            start = time.process_time()
            cell = KINDS[kind][0](network, setting, seed)
            RESULTS.save(key, cell | {"seconds": round(time.process_time() - start, 1)})
            print(key, RESULTS.load()[key]["seconds"], flush=True)
    render(RESULTS.load(), HERE)


if __name__ == "__main__":
    main()
