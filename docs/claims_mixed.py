"""Bits by layer: exact search against genetic, mixed against uniform; cells and section of docs/claims.md."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
from claims_cases import Case, at, table
from claims_cells import Cell, scores, spare_task, task_of

from refquant.net.plan import QuantPlan
from refquant.ptq.genetic import allocate_by_generations
from refquant.ptq.lapq import calibration_loss
from refquant.ptq.mixed import combined, sensitivities, weight_bits
from refquant.ptq.sequential import sequential
from refquant.solve.allocate import allocate
from refquant.solve.pairs import allocate_pairs, pair_error
from refquant.solve.solution import Solution

__all__ = ["mixed_cell", "mixed_section"]

CHOICES = (2, 4, 8)


def mixed_cell(network: str, average: str, seed: int) -> Cell:
    """Weights of 2, 4 or 8 bits, as large together as uniform ones: exact search, with pairs and without, and genetic.

    Plans are `descent`'s, 8-bit activations, without labels; once bits are chosen, codes are found anew with them.
    """
    tasks = {b: replace(task_of(network, (b, 8), 128, seed), labels=None) for b in (*CHOICES, int(average))}
    plans = {b: sequential(task) for b, task in tasks.items()}
    choices, last = [plans[b] for b in CHOICES], tasks[CHOICES[-1]]
    start = time.process_time()
    table, cost = sensitivities(last, choices), weight_bits(choices)
    measuring = time.process_time() - start
    most = float(sum(sums.storage_bits for sums in plans[int(average)].weights.values()))

    def scored(plan: QuantPlan) -> Cell:
        return {"loss": calibration_loss(last, plan)} | scores(spare_task(network), plan)

    @cache
    def measured(which: tuple[int, ...]) -> Cell:
        """The plans of these choices: layers of the uniform plans put together, and codes found anew."""
        bits = [CHOICES[k] for k in which]
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
        "uniform": scored(plans[int(average)]),
        "measuring": measuring,
        "pairs": int(np.any(table.pair != 0, axis=(1, 3)).sum()),
    }


# ---- the section ----------------------------------------------------------------------------------------------


def mixed_section(cells: dict[str, Cell]) -> str:
    """Means over the seeds measured."""
    found = [cell for key, cell in sorted(cells.items()) if key.startswith("mixed/resnet/3/")]
    text = (
        "\n## Bits by layer: exact, genetic, uniform\n\nThe resnet, weights of 2, 4 or 8 bits a layer, together as "
        "large as 3-bit ones (scales counted), activations 8 bits; codes by `descent` from 128 images, no labels; "
        "losses are divergences from the float network's softmax. Foretold: the sum of layers' and pairs' own "
        "losses on the calibration images. Measured: of the uniform plans' layers put together. Anew: codes found "
        "again with the bits chosen. "
    )
    if not found:
        return text + "Not measured yet.\n"

    def mean(*path: str) -> str:
        return f"{np.mean([at(*path)(cell) for cell in found]):.4f}"

    rows = [
        [
            name,
            mean(name, "foretold"),
            *(mean(name, *path) for path in (("spliced", "loss"), ("spliced", "divergence"))),
            *(mean(name, *path) for path in (("anew", "loss"), ("anew", "divergence"), ("anew", "error"))),
            f"{np.mean([cell[name]['share'] for cell in found]):.3f}",
            f"{np.mean([cell[name]['evaluations'] for cell in found]):.0f}",
            f"{np.mean([cell[name]['search'] for cell in found]):.2f}",
        ]
        for name in ("exact", "genetic", "additive")
    ]
    rows.append(
        ["uniform W3", "", "", "", *(mean("uniform", k) for k in ("loss", "divergence", "error")), "1.000", "", ""]
    )
    ratios = np.array([np.log(c["exact"]["anew"]["divergence"] / c["uniform"]["divergence"]) for c in found])
    behind = [c["genetic"]["foretold"] - c["exact"]["foretold"] for c in found]
    text += (
        f"Means of {len(found)} seeds; losses of layers and of {found[0]['pairs']} pairs took "
        f"{np.mean([c['measuring'] for c in found]):.1f} seconds. Additive: exact, without pairs.\n\n"
    )
    head = ["search", "foretold", "measured, calibration", "measured, spare", "anew, calibration", "anew, spare"]
    head += ["anew, spare error", "weight bits / W3's", "lookups or nodes", "seconds"]
    text += table(head, rows)
    case = Case("spare divergence, mixed (exact, anew) / uniform W3:", tuple(ratios.tolist()))
    return text + (
        f"\nThe genetic search ends {max(behind):.2g} above the exact optimum of the foretold loss at most, "
        f"{min(behind):.2g} at least. {case.text().capitalize()}. The bits found exactly, by seed: "
        + "; ".join(" ".join(map(str, c["exact"]["bits"])) for c in found)
        + ".\n"
    )
