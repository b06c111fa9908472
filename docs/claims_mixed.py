"""Bits by layer: exact search against genetic, mixed against uniform; cells and section of docs/claims.md."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
from claims_cases import Case, at
from claims_cells import Cell, scores, spare_task, task_of
from pages import table

from refquant.net.plan import QuantPlan
from refquant.ptq.genetic import allocate_by_generations
from refquant.ptq.lapq import calibration_loss
from refquant.ptq.mixed import combined, sensitivities, weight_bits
from refquant.ptq.sequential import sequential
from refquant.solve.allocate import allocate
from refquant.solve.pairs import allocate_pairs, pair_error
from refquant.solve.solution import Solution

__all__ = ["mixed_cell", "mixed_section"]

UNIFORM = 3
"""Bits of the weights that mixed ones are compared with, together as large."""


def mixed_cell(network: str, widths: str, seed: int) -> Cell:
    """Weights of these widths, layer by layer: found exactly, with pairs and without, and by the genetic algorithm.

    Plans are `descent`'s, 8-bit activations, without labels; once bits are chosen, codes are found anew with them.
    """
    bits_of = tuple(map(int, widths.split(",")))
    tasks = {b: replace(task_of(network, (b, 8), 128, seed), labels=None) for b in (*bits_of, UNIFORM)}
    plans = {b: sequential(task) for b, task in tasks.items()}
    choices, last = [plans[b] for b in bits_of], tasks[bits_of[-1]]
    start = time.process_time()
    table, cost = sensitivities(last, choices), weight_bits(choices)
    measuring = time.process_time() - start
    most = float(sum(sums.storage_bits for sums in plans[UNIFORM].weights.values()))

    def scored(plan: QuantPlan) -> Cell:
        return {"loss": calibration_loss(last, plan)} | scores(spare_task(network), plan)

    @cache
    def measured(which: tuple[int, ...]) -> Cell:
        """The plans of these choices: layers of the uniform plans put together, and codes found anew."""
        bits = [bits_of[k] for k in which]
        starts = {n: tasks[b].encode(last.graph.node(n)) for n, b in zip(table.names, bits, strict=True)}
        anew = sequential(replace(last, starts=starts))
        return {
            "bits": bits,
            "foretold": table.base + pair_error(which, table.single, table.pair),
            "spliced": scored(combined(choices, which)),
            "anew": scored(anew),
            "share": sum(sums.storage_bits for sums in anew.weights.values()) / most,
        }

    def answered(solve: Callable[[], Solution]) -> Cell:
        start = time.process_time()
        found = solve()
        seconds = time.process_time() - start
        return measured(tuple(found.value.tolist())) | {"evaluations": found.evaluations, "search": seconds}

    rng = np.random.default_rng(seed)
    return {
        "exact": answered(lambda: allocate_pairs(table.single, table.pair, cost, most)),
        "additive": answered(lambda: allocate(table.single, cost, most)),
        "genetic": answered(lambda: allocate_by_generations(table.single, table.pair, cost, most, rng)),
        "uniform": scored(plans[UNIFORM]),
        "measuring": measuring,
        "pairs": int(np.any(table.pair != 0, axis=(1, 3)).sum()),
    }


# ---- the section ----------------------------------------------------------------------------------------------


def mixed_section(cells: dict[str, Cell]) -> str:
    """Means over the seeds measured, for each set of widths."""
    text = (
        "\n## Bits by layer: exact, genetic, uniform\n\nThe resnet, weights of several widths, together at most as "
        "large as 3-bit ones (scales counted), activations 8 bits; codes by `descent` from 128 images, no labels; "
        "losses are divergences from the float network's softmax. Foretold: the sum of layers' and pairs' own losses "
        "on the calibration images. Measured: of the uniform plans' layers put together. Anew: codes found again with "
        "the bits chosen. Additive: exact, without pairs.\n"
    )
    for widths in sorted({key.split("/")[2] for key in cells if key.startswith("mixed/")}, key=len):
        found = [cell for key, cell in sorted(cells.items()) if key.startswith(f"mixed/resnet/{widths}/")]
        text += f"\n### {widths.replace(',', ', ')} bits\n\n{_searches(found)}"
    return text


SCORES = {
    "foretold": ("foretold",),
    "measured, calibration": ("spliced", "loss"),
    "measured, spare": ("spliced", "divergence"),
    "anew, calibration": ("anew", "loss"),
    "anew, spare": ("anew", "divergence"),
    "anew, spare error": ("anew", "error"),
}


def _searches(found: list[Cell]) -> str:
    def mean(*path: str, digits: int = 4) -> str:
        return f"{np.mean([at(*path)(cell) for cell in found]):.{digits}f}"

    rows = [
        [
            name,
            *(mean(name, *path) for path in SCORES.values()),
            mean(name, "share", digits=3),
            mean(name, "evaluations", digits=0),
            mean(name, "search", digits=2),
        ]
        for name in ("exact", "genetic", "additive")
    ]
    uniform = [mean("uniform", what) for what in ("loss", "divergence", "error")]
    rows.append(["uniform W3", "", "", "", *uniform, "1.000", "", ""])
    ratios = [float(np.log(c["exact"]["anew"]["divergence"] / c["uniform"]["divergence"])) for c in found]
    behind = [c["genetic"]["foretold"] - c["exact"]["foretold"] for c in found]
    case = Case("mixed (exact, anew) / uniform W3", tuple(ratios))
    return (
        table(["search", *SCORES, "weight bits / W3's", "lookups or nodes", "seconds"], rows)
        + f"\nMeans of {len(found)} seeds; measuring {found[0]['pairs']} pairs and the layers took "
        f"{mean('measuring', digits=1)} seconds. The genetic search ends {min(behind):.2g} to {max(behind):.2g} above "
        f"the exact optimum of the foretold loss. Spare divergence: {case.text()}. Bits found exactly, by seed: "
        + "; ".join(" ".join(map(str, c["exact"]["bits"])) for c in found)
        + ".\n"
    )
