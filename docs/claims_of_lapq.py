"""The relative claims of LAPQ, and of what it says of the geometry of scales."""

from functools import partial

import numpy as np
from claims_cases import (
    POWERS,
    Case,
    Cells,
    Claim,
    Figure,
    at,
    between,
    cases_of,
    log_ratio,
    minima,
    number,
    rows_of,
    seeds_of,
)

CURVATURE = "[curvature](curvature.md)"


def lapq(cells: Cells) -> list[Claim]:
    P, where, star = "LAPQ", "96 images, cross-entropy, at most 100 evaluations a search", "powell star"
    here = partial(Claim, P, where)

    def lapq_cases(a: Figure, b: Figure) -> tuple[Case, ...]:
        return cases_of(cells, "lapq", log_ratio(a, b))

    many = cases_of(cells, "lapq", lambda c: float(minima(c["losses"])), ratio=False)
    stars = {n: [seeds_of(cells, "lapq", n, bits) for bits in ("4-4", "2-2")] for n in ("mlp", "resnet")}
    rise = [
        Case(n, tuple(a["star"] - b["star"] for a, b in zip(*pair, strict=True)), ratio=False)
        for n, pair in stars.items()
        if all(pair)
    ]
    return [
        Claim(
            P,
            f"p in {', '.join(f'{p:g}' for p in POWERS)}; {where}",
            "the loss at s(p) is unimodal in p",
            "mean number of minima over seeds, less 1.01",
            tuple(Case(case.label, (float(np.mean(case.values)) - 1.01,), ratio=False) for case in many),
        ),
        here("p* rises as bits fall", "p* at W4A4 less p* at W2A2", tuple(rise)),
        here(
            "Powell from s(p*) lowers the calibration loss",
            "loss after / before, largest of the seeds",
            tuple(Case(c.label, (max(c.values),)) for c in lapq_cases(at(star, "last"), at(star, "first"))),
            "test_lapq.py::test_the_plan_is_the_best_seen_and_the_loss_falls",
        ),
        here(
            "held-out loss is below that of least squares (p = 2)",
            "spare loss of LAPQ / at p = 2",
            lapq_cases(at(star, "spare last"), at("powell 2", "spare first")),
            "test_lapq.py::test_at_two_bits_the_held_out_loss_is_below_that_of_least_squares",
        ),
        here(
            "and the more so the fewer the bits",
            "that ratio at W2A2 / at W4A4",
            between(cells, "lapq", "2-2", "4-4", lambda c: c[star]["spare last"] / c["powell 2"]["spare first"]),
            "test_lapq.py::test_what_is_gained_on_held_out_images_grows_as_bits_fall",
        ),
        *(
            here(
                f"Powell from p = 1 ends worse than from p = {p}",
                f"loss from {p} / from 1",
                lapq_cases(at(f"powell {p}", "last"), at("powell 1", "last")),
            )
            for p in (2, 3)
        ),
        Claim(
            P,
            "96 images, cross-entropy, from p = 2.5, at most 300 evaluations a search",
            "Powell ends below coordinate descent",
            "loss of Powell / of coordinate descent",
            cases_of(cells, "drivers", log_ratio(at("powell", "last"), at("coordinate", "last"))),
        ),
    ]


def geometry(curvature: str) -> list[Claim]:
    rows = {(row["network"], row["bits"]): row for row in rows_of(curvature, "LAPQ's geometry of scales")}
    networks = sorted({network for network, _ in rows}, reverse=True)
    pinned = "test_curvature.py::test_fewer_bits_curve_and_couple_scales"

    def log_of(network: str, bits: str, column: str) -> float:
        return float(np.log(number(rows[network, bits][column])))

    def compared(column: str) -> tuple[Case, ...]:
        return tuple(Case(n, (log_of(n, "4", column) - log_of(n, "2", column),)) for n in networks)

    def grown(network: str) -> float:
        """The index at 4 bits less that at 2, in standard errors; 0 within two of these."""
        (m4, e4), (m2, e2) = (map(float, rows[network, b]["separability index"].split("+-")) for b in ("4", "2"))
        z = (m4 - m2) / np.hypot(e4, e2)
        return float(z) if abs(z) > 2 else 0.0

    near = [
        Case(f"{n} {b} bits", (log_of(n, b, "3 or more apart") - log_of(n, b, "neighbours"),))
        for n in networks
        for b in ("4", "2")
    ]
    here = partial(Claim, "LAPQ, geometry", f"activations' scales, 64 images; {CURVATURE}")
    return [
        here(
            "2 bits curve the loss more than 4",
            "mean abs(H_ii) at 4 bits / at 2",
            compared("mean abs(H_ii)"),
            "test_lapq.py::test_the_loss_is_more_curved_at_two_bits_than_at_four",
        ),
        here("scale-free coupling is larger at 2 bits than at 4", "coupling at 4 bits / at 2", compared("coupling")),
        here("neighbours couple more than distant tensors", "coupling 3 or more apart / of neighbours", tuple(near)),
        here(
            "the separability index grows as bits fall",
            "index at 4 bits less at 2, in standard errors, 0 within two",
            tuple(Case(n, (grown(n),), ratio=False) for n in networks),
            pinned,
        ),
    ]
