"""Make docs/curvature.md and its figures: what papers claim of curvature, and what it is on the embedded networks.

python docs/make_curvature.py [--quick]
"""

import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pages import draw, spaced
from scipy.stats import spearmanr

import refquant as rq
from refquant.net.fold import fold_batch_norm
from refquant.report.style import COOL, INK, WARM
from refquant.theory.curvature import hawq_scores, layer_traces, theorem_ratio, uniform_perturbation, weight_errors
from refquant.theory.interactions import Losses, PairTerms, additivity, losses_of, pair_terms
from refquant.theory.scales import Quadratic, Separability, quadratic_at, scale_loss, separability

HERE = Path(__file__).parent
NETWORKS = ("mlp", "cnn", "resnet")
COLORS = dict(zip(NETWORKS, (INK, COOL, WARM), strict=True))
BITS = (8, 4, 3, 2)


def verdict(claim: str, holds: bool) -> str:
    return f"**{'Holds' if holds else 'Does not hold'} here:** {claim}\n\n"


class Given:
    """Images, networks and plans, made once."""

    def __init__(self, quick: bool) -> None:
        data = rq.load_data("fashion-mnist")
        self.count = 32 if quick else 64
        self.calibration = data.calibration.x[:64]
        self.x, self.y = data.calibration.x[64 : 64 + self.count], np.asarray(data.calibration.y)[64 : 64 + self.count]
        self.graphs = {name: rq.load_network(name) for name in NETWORKS[: 2 if quick else 3]}
        self.plans: dict[tuple[Any, ...], rq.QuantPlan] = {}
        self.known: dict[tuple[str, int], tuple[Losses, PairTerms]] = {}

    def plan(self, name: str, weights: int, activations: int | None = None) -> rq.QuantPlan:
        key = (name, weights, activations)
        if key not in self.plans:
            self.plans[key] = rq.quantize_network(
                self.graphs[name], self.calibration, bits=(weights, activations), method="absmax"
            )
        return self.plans[key]

    def terms(self, name: str, bits: int) -> tuple[Losses, PairTerms]:
        """Losses with weights quantized, and their single and pair terms."""
        if (name, bits) not in self.known:
            losses = losses_of(self.graphs[name], self.plan(name, bits), self.x, self.y)
            self.known[name, bits] = losses, pair_terms(losses)
        return self.known[name, bits]


# ---- traces and scores ----------------------------------------------------------------------------------------


def traces(given: Given) -> str:
    text = (
        f"## Traces by layer\n\n{given.count} images. Gauss-Newton's trace is Fisher's, exactly; the empirical "
        "Fisher trace takes the true labels. On images that the network was fitted to it is the smaller.\n\n"
    )
    rows, ranks = [], []
    for name, graph in given.graphs.items():
        found = layer_traces(graph, given.x, given.y)
        ranks.append(
            spearmanr([t.gauss_newton for t in found.values()], [t.empirical_fisher for t in found.values()])[0]
        )
        rows += [
            [name, layer, f"{t.parameters:,}", f"{t.gauss_newton:.4g}", f"{t.empirical_fisher:.4g}",
             f"{t.gauss_newton / t.parameters:.3g}"]
            for layer, t in found.items()
        ]  # fmt: skip
    text += spaced(["network", "layer", "weights", "Gauss-Newton", "empirical Fisher", "Gauss-Newton / weights"], rows)
    claim = f"both order the layers alike (rank correlations {', '.join(f'{r:.2f}' for r in ranks)})."
    return text + verdict(claim, min(ranks) > 0.9)


def scores(given: Given) -> str:
    rows, good = [], []
    for name, graph in given.graphs.items():
        found = layer_traces(graph, given.x, given.y)
        for bits in BITS:
            plan = given.plan(name, bits)
            hawq = hawq_scores(found, weight_errors(graph, plan))
            _, terms = given.terms(name, bits)
            layers = [source.name for source in terms.sources]
            measured, model = np.diag(terms.measured), np.diag(terms.model)
            score = np.array([hawq[layer] for layer in layers])
            ranks = [spearmanr(v, measured)[0] if len(layers) > 2 else float("nan") for v in (score, model)]
            ratio = [np.median(np.abs(v) / np.abs(measured)) for v in (score, model)]
            rows.append([name, str(bits), *(f"{r:.2f}" for r in ranks), *(f"{r:.2f}" for r in ratio)])
            good.append(ranks[0])
    text = (
        "## HAWQ-V2's score against the loss of one layer quantized\n\nRank correlation over the layers, and the "
        "median of |forecast| / |measured|: for the score, which knows only the length of an error, and for the "
        "second-order form of the error itself.\n\n"
    )
    head = ["network", "bits", "rank: score", "rank: form", "ratio: score", "ratio: form"]
    return (
        text
        + spaced(head, rows)
        + verdict(
            "the score orders layers as the measured loss does (rank correlation above 0.7 in "
            f"{np.sum(np.array(good) > 0.7)}"
            f" of {len(good)} cases, least {np.nanmin(good):.2f}).",
            bool(np.nanmin(good) > 0.7),
        )
    )


def pairs(given: Given) -> str:
    rows, agreement, shown = [], [], {}
    for name in given.graphs:
        for bits in BITS:
            _, terms = given.terms(name, bits)
            upper = np.triu_indices(len(terms.sources), 1)
            measured, model = terms.measured[upper], terms.model[upper]
            near = np.array([j - i == 1 for i, j in zip(*upper, strict=True)])
            rank = spearmanr(measured, model)[0]
            share = np.abs(measured).sum() / (np.abs(measured).sum() + np.abs(np.diag(terms.measured)).sum())
            rows.append(
                [name, str(bits), f"{100 * share:.0f} %", f"{rank:.2f}", f"{np.abs(measured[near]).mean():.3g}",
                 f"{np.abs(measured[~near]).mean():.3g}"]
            )  # fmt: skip
            agreement.append((bits, rank))
            if name == list(given.graphs)[-1]:
                shown[bits] = terms.measured

    def make(figure: Figure) -> None:
        for ax, bits in zip(figure.subplots(1, 2), (4, 2), strict=True):
            most = float(np.abs(shown[bits]).max())
            image = ax.imshow(shown[bits], cmap="RdBu_r", vmin=-most, vmax=most)
            ax.grid(False)
            ax.set_title(f"{list(given.graphs)[-1]}, {bits} bits: single (diagonal) and pair terms", fontsize=8)
            figure.colorbar(image, ax=ax, shrink=0.8)

    text = (
        "## Pair terms (CLADO)\n\nL_ij - L_i - L_j + L_0 for the weights of layers i and j, measured; their share "
        "of all magnitudes, single terms included; their rank correlation with dz_i S dz_j; the mean magnitude of "
        "neighbours' and of others'.\n\n"
    )
    text += spaced(["network", "bits", "share", "rank", "neighbours", "others"], rows) + draw("pairs", make)
    fine, coarse = (np.mean([r for b, r in agreement if b == bits]) for bits in (4, 2))
    return text + verdict(
        f"pair terms are forecast by the Gauss-Newton matrix (mean rank correlation {fine:.2f} at 4 bits, "
        f"{coarse:.2f} at 2).",
        bool(min(fine, coarse) > 0.7),
    )


# ---- BRECQ's theorem, AdaQuant's additivity -------------------------------------------------------------------

SIZES = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.2, 0.3, 0.5)


def theorem(given: Given) -> str:
    curves = {
        name: np.array([theorem_ratio(g, given.x, uniform_perturbation(g, t, np.random.default_rng(0))) for t in SIZES])
        for name, g in given.graphs.items()
    }

    def make(figure: Figure) -> None:
        titles = ("output form / weight form", "2 KL / output form")
        for k, (ax, title) in enumerate(zip(figure.subplots(1, 2), titles, strict=True)):
            for name, curve in curves.items():
                ax.plot(SIZES[k:], curve[k:, k], "o-", ms=3, color=COLORS[name], label=name)
            ax.axhline(1, color=INK, lw=0.7, ls="--")
            ax.set_xscale("log")
            ax.set_title(title, fontsize=9)
            ax.set_xlabel("perturbation / largest weight")
            ax.legend(frameon=False, fontsize=8)

    rows = [[f"{t:g}", *(f"{c[i, 0]:.3f} / {c[i, 1]:.3f}" for c in curves.values())] for i, t in enumerate(SIZES)]
    rows[0] = [rows[0][0], *(f"{c[0, 0]:.3f} / lost in rounding" for c in curves.values())]
    plans = []
    for bits in BITS:
        cells = [theorem_ratio(g, given.x, weight_errors(g, given.plan(n, bits))) for n, g in given.graphs.items()]
        plans.append([f"{bits} bits, absmax per channel", *(f"{a:.3f} / {b:.3f}" for a, b in cells)])
        last = cells
    text = (
        "## BRECQ's theorem 3.1\n\nE dz S dz / dtheta G dtheta, and 2 KL / E dz S dz, for uniform errors of up to "
        "so many times the largest weight of each layer, then for the errors of rounding to nearest.\n\n"
    )
    text += spaced(["perturbation", *curves], rows + plans) + draw("theorem", make)
    text += verdict(
        "the ratio tends to 1. Where it does so only below 1e-6, a flat background meets a kink of a ReLU, at all "
        "of its pixels at once.",
        all(abs(c[0, 0] - 1) < 1e-4 for c in curves.values()),
    )
    most = ", ".join(f"{a:.2f}" for a, _ in last)
    return text + verdict(
        f"it is near 1 (within a fifth) at 2 bits too, where the method is used ({most}).",
        all(abs(a - 1) < 0.2 for a, _ in last),
    )


def added(given: Given) -> str:
    rows, clouds, worst = [], {}, []
    for name in given.graphs:
        for bits in BITS:
            losses, terms = given.terms(name, bits)
            weights, rng = [s for s in losses.sources if s.kind == "weight"], np.random.default_rng(1)
            sets = [c for n in range(2, len(weights) + 1) for c in combinations(weights, n)]
            if len(sets) > 40:
                sizes = rng.integers(2, len(weights) + 1, 40)
                sets = [tuple(weights[k] for k in rng.permutation(len(weights))[:size]) for size in sizes]
            found = additivity(losses, sets)
            with_pairs = np.array([terms.forecast(terms.measured, some, pairs=True) for some in sets])
            rest = float(np.sqrt(np.mean((found.together - with_pairs) ** 2) / np.mean(found.together**2)))
            rows.append(
                [name, str(bits), f"{found.residual:.2f}", f"{rest:.2f}", f"{found.rank_correlation:.2f}",
                 f"{found.slope:.2f}"]
            )  # fmt: skip
            worst.append(found.residual)
            if bits in (4, 2):
                clouds[name, bits] = found

    def make(figure: Figure) -> None:
        for ax, bits in zip(figure.subplots(1, 2), (4, 2), strict=True):
            most = 0.0
            for name in given.graphs:
                cloud = clouds[name, bits]
                ax.plot(cloud.sums, cloud.together, "o", ms=3, color=COLORS[name], label=name)
                most = max(most, float(cloud.sums.max()), float(cloud.together.max()))
            ax.plot([0, most], [0, most], color=INK, lw=0.7, ls="--")
            ax.set_title(f"{bits} bits", fontsize=9)
            ax.set_xlabel("sum of single increases")
            ax.set_ylabel("measured together")
            ax.legend(frameon=False, fontsize=8)

    text = (
        "## AdaQuant's additivity\n\nLoss increases of sets of layers against the sum of their members' alone: "
        "root mean square of the difference relative to the measured; the same with pair terms added; rank "
        "correlation; the factor by which sums are best multiplied.\n\n"
    )
    head = ["network", "bits", "residual", "with pairs", "rank", "slope"]
    return (
        text
        + spaced(head, rows)
        + draw("additivity", make)
        + verdict(
            f"increases add up within a tenth (residuals {min(worst):.2f} to {max(worst):.2f}).", max(worst) <= 0.1
        )
    )


# ---- LAPQ's geometry ------------------------------------------------------------------------------------------


def least_squares_factors(given: Given, name: str, plan: rq.QuantPlan) -> np.ndarray:
    """The factors of a plan's scales that make each activation's squared error least, on a grid."""
    _, trace = rq.forward(fold_batch_norm(given.graphs[name]), given.calibration[:32], trace=True)
    grid, found = np.linspace(0.2, 1.1, 46), []
    for tensor, q in plan.activations.items():
        x = np.asarray(trace[tensor], np.float64)
        errors = [float(np.sum((rq.fake_quantize(x, q.scale * f, q.zero_point, spec=q.spec) - x) ** 2)) for f in grid]
        found.append(float(grid[int(np.argmin(errors))]))
    return np.array(found)


def beyond_doubt(larger: Separability, smaller: Separability) -> bool:
    """Whether one index is above another by two standard errors of the difference."""
    error = float(np.hypot(larger.standard_error, smaller.standard_error))
    return larger.interaction - smaller.interaction > 2 * error


def geometry(given: Given) -> str:
    rows, shown = [], {}
    found: dict[tuple[str, int], tuple[Quadratic, Separability]] = {}
    for name in list(given.graphs)[1:]:
        for bits in (8, 4, 3, 2):
            plan = given.plan(name, 8, bits)
            only = rq.QuantPlan(activations=plan.activations)
            best = least_squares_factors(given, name, only)
            tensors, f = scale_loss(given.graphs[name], only, given.x, given.y)
            order = [list(only.activations).index(tensor) for tensor in tensors]
            at = best[order]
            relative = lambda s, f=f, at=at: f(s * at)  # noqa: E731 (factors of the least-squares scales)
            one = np.ones(len(at))
            q = quadratic_at(relative, one, 0.15)
            box = separability(relative, 0.7 * one, 1.4 * one, samples=given.count, rng=np.random.default_rng(2))
            found[name, bits] = q, box
            shown[bits] = q.coupling
            d = np.abs(np.diag(q.hessian))
            rows.append(
                [name, str(bits), f"{d.mean():.3g}", f"{q.coupling_at(1):.3f}", f"{q.coupling_at(1, 1):.3f}",
                 f"{q.coupling_at(3):.3f}", f"{100 * q.off_diagonal_share:.0f} %", f"{q.gaussian_curvature:.2g}",
                 f"{box.interaction:.2g} +- {box.standard_error:.1g}", f"{100 * box.share:.0f} %"]
            )  # fmt: skip

    def make(figure: Figure) -> None:
        for ax, bits in zip(figure.subplots(1, 3), (4, 3, 2), strict=True):
            image = ax.imshow(shown[bits], cmap="viridis", vmin=0, vmax=1)
            ax.grid(False)
            ax.set_title(f"{list(given.graphs)[-1]}: {bits} bits", fontsize=9)
        figure.colorbar(image, ax=figure.axes, shrink=0.8)

    text = (
        f"## LAPQ's geometry of scales\n\nThe cross-entropy of {given.count} images as a function of factors of the "
        "activations' scales, weights float, around the scales of least squared error: central differences over "
        f"0.15; separability over the box from 0.7 to 1.4, {given.count} pairs of points.\n\n"
    )
    head = ["network", "bits", "mean abs(H_ii)", "coupling", "neighbours", "3 or more apart", "off diagonal"]
    text += spaced([*head, "det H / (g^2 + 1)^2", "separability index", "share of variance"], rows) + draw(
        "scales", make
    )
    names = sorted({name for name, _ in found})

    def mean_curvature(name: str, bits: int) -> float:
        return float(np.abs(np.diag(found[name, bits][0].hessian)).mean())

    def coupling(name: str, bits: int, least: int, most: int | None = None) -> float:
        return found[name, bits][0].coupling_at(least, most)

    curved = all(mean_curvature(n, 2) > 5 * mean_curvature(n, 4) for n in names)
    coupled = all(coupling(n, 2, 1) > coupling(n, 4, 1) for n in names)
    near = all(coupling(n, b, 1, 1) > coupling(n, b, 3) for n in names for b in (4, 2))
    apart = all(beyond_doubt(found[n, 2][1], found[n, 4][1]) for n in names)
    return (
        text
        + verdict("2 bits curve the loss at least five times as much as 4.", curved)
        + verdict("scale-free coupling is larger at 2 bits than at 4.", coupled)
        + verdict("neighbours couple more than tensors three or more apart, at 4 and at 2 bits.", near)
        + verdict("the separability index is larger at 2 bits than at 4, by two standard errors.", apart)
    )


def main() -> None:
    """Write curvature.md and its figures beside this file."""
    given = Given("--quick" in sys.argv)
    head = (
        "# Claims about curvature, measured\n\nMade by `docs/make_curvature.py` on the embedded networks, with "
        "images of the training split that no plan was made from. Losses are cross-entropies; weights are rounded "
        "to nearest per channel at absmax scales; everything second-order is a model. A verdict says what the "
        "stated criterion gives on these networks and images, and nothing of others.\n\n"
    )
    parts = [part(given) for part in (traces, scores, pairs, theorem, added, geometry)]
    (HERE / "curvature.md").write_text(head + "".join(parts).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
