"""The relative claims of the four papers, each with its cases from the cells of docs/make_claims.py."""

from functools import partial
from typing import Any

import numpy as np
from claims_cases import (
    Case,
    Cells,
    Claim,
    Figure,
    at,
    between,
    cases_of,
    log_ratio,
    rows_of,
    seeds_of,
)
from claims_of_lapq import CURVATURE, geometry, lapq


def adaquant(cells: Cells, curvature: str) -> list[Claim]:
    P = "AdaQuant"
    here = partial(Claim, P, "W4A4, 32 images, 250 steps a part")
    norms = partial(Claim, P, "nearest codes, 128 images, momentum 1")

    def gap(name: str) -> Figure:
        return lambda c: float(c[name]["spare"]["error"] / c[name]["seen"]["error"])

    def compared(a: Figure, b: Figure) -> tuple[Case, ...]:
        return cases_of(cells, "adaquant", log_ratio(a, b), name="")

    def layer(k: int) -> Figure:
        return lambda c: float(np.log(c["layers parallel"][k] / c["layers nearest"][k]))

    def renormed(kind: str, which: str) -> tuple[Case, ...]:
        return cases_of(cells, kind, log_ratio(at("after", which), at("before", which)), name="W{}A8")

    counts = {key.split("/")[1]: len(c["layers nearest"]) for key, c in cells.items() if key.startswith("adaquant/")}
    alone = [
        Case(f"{network} layer {k + 1}", tuple(map(layer(k), some)))
        for network, count in sorted(counts.items(), reverse=True)
        for k in range(count)
        if (some := seeds_of(cells, "adaquant", network, "32"))
    ]
    additive = [
        Case(f"{row['network']} {row['bits']} bits", (float(row["residual"]) - 0.1,), ratio=False)
        for row in rows_of(curvature, "AdaQuant's additivity")
    ]
    sequential, parallel, together = (at(name, "spare", "error") for name in ("sequential", "parallel", "together"))
    moved = [
        Case(
            n, tuple(float(np.log(parallel(a) / at("light", "spare", "error")(b))) for a, b in zip(*both, strict=True))
        )
        for n in sorted(counts, reverse=True)
        if all(both := [seeds_of(cells, kind, n, "32") for kind in ("adaquant", "light")])
    ]
    return [
        here(
            "tens of images lower a layer's held-out error",
            "spare error of the layer alone / of least squares",
            tuple(alone),
            "test_adaquant.py::test_the_held_out_error_falls_even_with_few_images",
        ),
        Claim(
            P,
            "W4A4, 32 images, 60 evaluations a layer",
            "ranges alone, by Nelder-Mead (its light form), lower the held-out error",
            "spare error, ranges of each layer / least squares",
            cases_of(
                cells, "light", log_ratio(at("light", "spare", "error"), at("nearest", "spare", "error")), name=""
            ),
        ),
        here("weights that move lower it more", "spare error, weights, parallel / ranges alone", tuple(moved)),
        here(
            "end-to-end tuning on as many images overfits more",
            "spare / calibration error of the logits, layer by layer (sequential) / end to end",
            compared(gap("sequential"), gap("together")),
        ),
        here(
            "end-to-end tuning ends worse on held-out images",
            "spare error, layer by layer / end to end",
            compared(sequential, together),
        ),
        here(
            "sequential beats parallel for uniform 4 bits",
            "spare error, sequential / parallel",
            compared(sequential, parallel),
            "test_adaquant.py::test_sequential_layers_err_less_than_parallel_ones_together",
        ),
        Claim(
            P,
            "bits 2, 4, 8 a layer, 5 budgets, all allocations",
            "the integer programme's optimum is that of brute force",
            "largest difference, relative to the largest loss, less 1e-9",
            cases_of(cells, "programme", lambda c: c["apart"] - 1e-9, ratio=False, name=""),
            "test_adaquant.py::test_the_programme_is_the_exhaustive_search",
        ),
        Claim(
            P,
            f"sets of layers; {CURVATURE}",
            "losses of layers add up (within a tenth)",
            "residual less 0.1",
            tuple(additive),
            "test_curvature.py::test_additivity_is_measured",
        ),
        norms(
            "batch norms estimated anew lower the calibration loss",
            "cross-entropy after / before",
            renormed("norms", "seen"),
            "test_adaquant.py::test_new_moments_lower_the_loss_at_three_bits",
        ),
        norms("and the held-out loss", "spare cross-entropy after / before", renormed("norms", "spare")),
        Claim(
            P,
            "sequential, 128 images, 250 steps a part; momentum 1",
            "and that of what AdaQuant has tuned",
            "spare cross-entropy after / before",
            renormed("tuned", "spare"),
        ),
        Claim(
            P,
            "nearest codes, 4 bits, activations float",
            "without new moments the network is unchanged (to 1e-6)",
            "largest change of a logit, relative to the largest logit, less 1e-6",
            cases_of(cells, "unmoved", lambda c: c["apart"] - 1e-6, ratio=False, name=""),
            "test_adaquant.py::test_without_new_moments_nothing_changes_and_with_them_they_are_restored",
        ),
    ]


def brecq(cells: Cells, curvature: str) -> list[Claim]:
    P, where = "BRECQ", "2-bit weights, 250 steps a part of 16 images, rate 0.03"
    error, divergence = at("spare", "error"), at("spare", "divergence")
    here, decided = partial(Claim, P, where), partial(Claim, P, "last layer, lambda = 1, 1000 steps")
    longer = partial(Claim, P, f"{where}, network: 1000")

    grains = "test_claims.py::test_blocks_err_less_than_layers_and_the_network_at_once_is_optimized_too_little"

    def parts(one: str, other: str, figure: Figure) -> tuple[Case, ...]:
        return tuple(
            case
            for n in (32, 128)
            for case in between(cells, "parts", f"{one}-{n}", f"{other}-{n}", figure, f" {n} images")
        )

    def grown(one: str, other: str) -> list[Case]:
        """(error of one / of the other) with 128 images against with 32."""
        some = [seeds_of(cells, "parts", "resnet", f"{g}-{n}") for n in (128, 32) for g in (one, other)]
        rows = np.log([[error(cell) for cell in each] for each in some]) if all(some) else np.empty((4, 0))
        values = tuple((rows[0] - rows[1] - rows[2] + rows[3]).tolist())
        return [Case(f"resnet {one} / {other}", values)] if values else []

    def gap(cell: dict[str, Any]) -> float:
        return float(cell["spare"]["error"] / cell["seen"]["error"])

    def off(perturbation: str, allowed: float) -> tuple[Case, ...]:
        rows = rows_of(curvature, "BRECQ's theorem 3.1")
        row = next(row for row in rows if row["perturbation"].startswith(perturbation))
        return tuple(
            Case(n, (abs(float(text.split("/")[0]) - 1) - allowed,), ratio=False)
            for n, text in row.items()
            if n != "perturbation"
        )

    return [
        decided(
            "rounding variables end decided",
            "share undecided, less 0.01",
            cases_of(cells, "rounding", lambda c: c["undecided"] - 0.01, ratio=False),
            "test_brecq.py::test_codes_are_decided_at_the_end_and_becoming_integers_changes_little",
        ),
        decided(
            "hard codes err as soft ones (within a hundredth)",
            "error hard / soft, over 1.01",
            cases_of(cells, "rounding", lambda c: float(np.log(c["hard"] / c["soft"] / 1.01))),
        ),
        Claim(
            P,
            "weights alone, layer by layer, 64 images, 250 steps a part",
            "learned rounding errs less than nearest",
            "spare error, learned / nearest",
            cases_of(cells, "rounding", log_ratio(at("learned", "spare", "error"), at("nearest", "spare", "error"))),
            "test_brecq.py::test_learned_rounding_lowers_the_output_error_of_nearest",
        ),
        *(
            here(
                f"blocks err less than {name} at 2 bits", f"spare error, block / {other}", parts("block", other, error)
            )
            for other, name in (("layer", "layers"), ("stage", "stages"), ("network", "the network at once"))
        ),
        here(
            "the network at once overfits more than blocks",
            "spare / calibration error, block / network",
            parts("block", "network", gap),
        ),
        here(
            "its calibration error is the lower one",
            "calibration error, network / block",
            parts("network", "block", at("seen", "error")),
            grains,
            "overfitting would have it lower; where it is higher, the network at once is optimized too little",
        ),
        longer(
            "more steps do not mend it",
            "spare error, network, 250 steps / 1000 steps",
            parts("network", "network4", error),
        ),
        longer(
            "blocks err less than the network at once with more steps",
            "spare error, block / network",
            parts("block", "network4", error),
        ),
        here(
            "larger parts gain from more images",
            "ratio of spare errors with 128 images / with 32",
            tuple(
                case
                for pair in (("block", "layer"), ("stage", "block"), ("network", "block"), ("network4", "block"))
                for case in grown(*pair)
            ),
        ),
        Claim(
            P,
            f"perturbation 1e-6; {CURVATURE}",
            "theorem 3.1: the ratio tends to 1 (within 0.01)",
            "abs(ratio - 1) less 0.01",
            off("1e-06", 0.01),
            "test_brecq.py::test_the_theorem_holds_for_small_perturbations_and_not_for_large_ones",
        ),
        Claim(
            P,
            f"nearest codes, absmax; {CURVATURE}",
            "and is near 1 (within 0.2) for the errors of 2 bits",
            "abs(ratio - 1) less 0.2",
            off("2 bits", 0.2),
        ),
        *(
            Claim(
                P,
                f"{where}, blocks, 64 images",
                f"`{name}` weights are better than none",
                f"spare {what}, {name} / mse",
                between(cells, "weighting", name, "mse", figure),
            )
            for name in ("fisher", "fisher_code")
            for what, figure in (("error", error), ("divergence", divergence))
        ),
    ]


def multipoint(cells: Cells) -> list[Claim]:
    decay = {tuple(key.split("/")[1:3]): cell for key, cell in cells.items() if key.startswith("decay/")}
    points = [cell for key, cell in cells.items() if key.startswith("points/")]
    extra = [one["operations"] / cell["ranked"]["operations"] - 1 for cell in points for one in cell["random"]]
    spent = f", whose operations are {min(extra):+.2%} to {max(extra):+.2%} as many" if extra else ""

    def worst(scheme: str, allowed: float) -> tuple[Case, ...]:
        return tuple(
            Case(f"{network} {bits} bits", (float(np.log(cell[scheme]["worst"])) - allowed,))
            for (network, bits), cell in sorted(decay.items(), reverse=True)
        )

    def by_chance(what: str) -> Figure:
        return lambda c: float(np.mean([one[what] for one in c["random"]]))

    def ranked(what: str) -> tuple[Case, ...]:
        return cases_of(cells, "points", log_ratio(at("ranked", what), by_chance(what)), name="{}")

    def miscounted(cell: dict[str, Any]) -> float:
        return abs(cell["ranked"]["operations"] / cell["ranked"]["counted"] - 1) - 1e-9

    every = partial(Claim, "Multipoint", "every channel, 1 to 4 points, no images")
    here = partial(Claim, "Multipoint", f"W2A8, 64 images, two points at most; five random choices a seed{spent}")
    return [
        every(
            "a = the largest magnitude: the largest error falls by eps / 2 a point",
            "largest error / (eps / 2)^n, in largest magnitudes, less 2^-22 for four scales rounded to float32",
            worst("a", 2.0**-22),
            "test_multipoint.py::test_with_absmax_scales_the_largest_error_falls_by_half_a_step_a_point",
        ),
        every(
            "best a: the squared error falls by 1 - 1/d a point",
            "error / (1 - 1/d)^(n/2)",
            worst("b", 0.0),
            "test_multipoint.py::test_errors_decay_geometrically",
        ),
        here(
            "channels chosen by output error beat random ones at equal overhead",
            "spare divergence, ranked / mean of random",
            ranked("divergence"),
            "test_claims.py::test_channels_chosen_by_output_error_diverge_less_than_random_ones",
        ),
        here(
            "the same, by the error of the logits",
            "spare error, ranked / mean of random",
            ranked("error"),
            "test_multipoint.py::test_choice_by_output_error_beats_chance",
        ),
        here(
            "overhead is counted exactly",
            "operations reported / counted channel by channel, from 1, less 1e-9",
            cases_of(cells, "points", miscounted, ratio=False, name="{}"),
            "test_multipoint.py::test_budgets_are_kept_and_nearly_used",
        ),
    ]


def claims_of(cells: Cells, curvature: str) -> list[Claim]:
    """All; curvature: the text of docs/curvature.md."""
    by_paper = lapq(cells), geometry(curvature), adaquant(cells, curvature), brecq(cells, curvature), multipoint(cells)
    return [claim for claims in by_paper for claim in claims]
