"""The tables and plots of docs/methods.md, from cells that docs/make_methods.py measured."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pages import Cell, draw, table

import refquant as rq
from refquant.net.graph import macs
from refquant.ptq.lossless import LEVELS, first_reached
from refquant.ptq.methods import METHODS
from refquant.report.style import COOL, INK, WARM

NETWORKS = ("resnet", "cnn", "mlp")
BITS = ("4-8", "3-8", "2-8", "4-4", "2-4")
RANDOM = ("adaquant", "brecq", "blockwise", "blockwise-distilled")
"""Methods that draw random numbers: these have a cell for each seed."""

SEEDS = 3

FLOAT = {name: 100 * float(rq.load_network(name).notes["test_accuracy"]) for name in NETWORKS}
"""Accuracy of the float networks on the test images, in percent."""

PEERS = {  # best held-out accuracy of existing tools in these conditions, over variants with the test set in view
    "resnet": {"4-8": 92.09, "3-8": 91.63, "2-8": 90.83, "4-4": 91.36, "2-4": 90.06},
    "cnn": {"4-8": 91.76, "3-8": 91.59, "2-8": 90.81, "4-4": 91.53, "2-4": 90.20},
    "mlp": {"4-8": 89.92, "3-8": 89.77, "2-8": 89.48, "4-4": 89.82, "2-4": 88.83},
}
CURVES = {"descent": INK, "gpfq": COOL, "multipoint": WARM, "certified": "#6b7280"}
"""Methods whose whole curve F(P) is drawn, and their colours."""

LOSSLESS_BUDGET = 8
"""Methods measured at this budget and more are in the table of the way to lossless."""

Cells = dict[str, Cell]


def cell_key(network: str, method: str, bits: str, budget: float, seed: int) -> str:
    return f"{network}/{method}/{bits}/{budget:g}/{seed}"


def of(cells: Cells, network: str, method: str, bits: str, budget: float) -> list[Cell]:
    """The cells of all seeds."""
    prefix = f"{network}/{method}/{bits}/{budget:g}/"
    return [cell for name, cell in sorted(cells.items()) if name.startswith(prefix)]


def mean(found: list[Cell], what: str = "accuracy") -> float:
    """Over seeds; NaN without a cell."""
    return float(np.mean([cell.get(what, np.nan) for cell in found])) if found else float("nan")


def width(bits: str) -> str:
    return f"W{bits.replace('-', 'A')}"


def relative(network: str, cell: Cell) -> float:
    """P relative to one term of W4A8."""
    return float(cell["bit_operations"] / (4 * 8) / sum(macs(rq.load_network(network)).values()))


def shown(found: list[Cell]) -> str:
    """Accuracy in percent: of one cell, or mean and range of several seeds."""
    if not found:
        return ""
    values = [100 * cell["accuracy"] for cell in found]
    text = f"{np.mean(values):.2f}"
    return text if len(values) == 1 else f"{text} ({min(values):.2f} to {max(values):.2f})"


# ---- one term a weight ----------------------------------------------------------------------------------------


def _losses(cells: Cells) -> Callable[[Figure], None]:
    def make(figure: Figure) -> None:
        for network, axes in zip(NETWORKS, figure.subplots(1, 3, sharey=True), strict=True):
            lost = np.array(
                [
                    [
                        FLOAT[network] - 100 * mean(found) if (found := of(cells, network, m, b, 1)) else np.nan
                        for b in BITS
                    ]
                    for m in METHODS
                ]
            )
            axes.imshow(np.log10(np.maximum(lost, 0.1)), cmap="YlOrRd", vmin=-1, vmax=2, aspect="auto")
            for (i, j), value in np.ndenumerate(lost):
                color = "white" if value > 10 else INK
                axes.text(
                    j, i, "" if np.isnan(value) else f"{value:.2f}", ha="center", va="center", size=7, color=color
                )
            axes.set_title(network)
            axes.set_xticks(range(len(BITS)), [width(b) for b in BITS], size=8)
            axes.set_yticks(range(len(METHODS)), list(METHODS), size=8)
            axes.grid(False)

    return make


def single_terms(cells: Cells, here: Path) -> str:
    text = (
        "## One term a weight\n\nHeld-out accuracy in percent on the 10,000 test images; a 95 % interval is about "
        "+-0.55 points, that of a difference between methods narrower. Weights by output channel, all layers, "
        "full-range grids (multipoint: symmetric); inputs of layers by tensor with zero point; skip paths and logits "
        "float. Methods that draw random numbers: mean and range of the seeds. The last row is the best that existing "
        "tools reached in these conditions, over each tool's variants with the test set in view.\n\n"
        "Points lost to the float network (colour: their logarithm):\n\n"
    ) + draw("methods", _losses(cells), (10, 4.4), here)
    for network in NETWORKS:
        made = [m for m in METHODS if any(of(cells, network, m, b, 1) for b in BITS)]
        rows = [[m, *(shown(of(cells, network, m, b, 1)) for b in BITS)] for m in made]
        rows.append(["best existing tool", *(f"{PEERS[network][b]:.2f}" for b in BITS)])
        text += f"### {network} (float {FLOAT[network]:.2f})\n\n" + table(["method", *map(width, BITS)], rows) + "\n"
    return text


# ---- against existing tools -----------------------------------------------------------------------------------


def _chosen(cells: Cells, network: str, bits: str, by: Callable[[list[Cell]], float]) -> str | None:
    """The method whose cells are least by this measure."""
    made = {m: by(of(cells, network, m, bits, 1)) for m in METHODS}
    made = {m: measure for m, measure in made.items() if not np.isnan(measure)}
    return min(made, key=lambda m: made[m]) if made else None


def against_tools(cells: Cells) -> str:
    rows = []
    for network, bits in product(NETWORKS, BITS):
        row = [network, width(bits), f"{PEERS[network][bits]:.2f}"]
        for by in (lambda found: mean(found, "spare_divergence"), lambda found: -mean(found)):
            method = _chosen(cells, network, bits, by)
            if method is not None:
                accuracy = 100 * mean(of(cells, network, method, bits, 1))
                row += [method, f"{accuracy:.2f}", f"{accuracy - PEERS[network][bits]:+.2f}"]
        rows.append(row)
    ahead = sum(float(row[5]) >= 0 for row in rows if len(row) > 5)
    behind = sum(float(row[8]) >= 0 for row in rows if len(row) > 8)
    head = [
        "network",
        "width",
        "best existing tool",
        "chosen without test images",
        "accuracy",
        "less the tool",
        "best on test images",
        "accuracy",
        "less the tool",
    ]
    return (
        "## Against existing tools\n\nTwice: the method whose logits are nearest the float network's on 512 further "
        "images of the training split, which no method was fitted to, so that no test image takes part in the choice; "
        "and the one that is best on the test images, as the tools' figures are. The standard error of a difference "
        f"is about 0.15 to 0.3 points. At or above the tool: {ahead} and {behind} of {len(rows)}.\n\n"
        + table(head, rows)
        + "\n"
    )


# ---- with terms -----------------------------------------------------------------------------------------------


def _budgets(cells: Cells, network: str, method: str, bits: str) -> list[float]:
    found = {float(name.split("/")[3]) for name in cells if name.startswith(f"{network}/{method}/{bits}/")}
    return sorted(found)


def _curves(cells: Cells) -> Callable[[Figure], None]:
    def panel(axes: Axes, network: str) -> None:
        for method, color in CURVES.items():
            for points, style in (
                ([("2-8", b) for b in _budgets(cells, network, method, "2-8")], "o-"),
                ([(b, 1.0) for b in ("2-8", "3-8", "4-8")], "s:"),
            ):
                made = [found for b, budget in points if (found := of(cells, network, method, b, budget))]
                if not made:
                    continue
                P = [relative(network, found[0]) for found in made]
                lost = [max(FLOAT[network] - 100 * mean(found), 0.02) for found in made]
                label = method if style == "o-" else None
                axes.plot(P, lost, style, color=color, label=label, markersize=4, linewidth=1)
        axes.set(xscale="log", yscale="log", title=network, xlabel="P / one term of W4A8")
        axes.set_xticks(ticks := [0.5, 1, 2, 4, 8], [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()

    def make(figure: Figure) -> None:
        row = figure.subplots(1, 3, sharey=True)
        for network, axes in zip(NETWORKS, row, strict=True):
            panel(axes, network)
        row[0].set_ylabel("points lost to float (at least 0.02)")
        row[0].legend(fontsize=8)

    return make


def _within(cells: Cells, network: str, points: float) -> str:
    """The least P, relative to one term of W4A8, at which sums of 2-bit terms lose at most so many points."""
    made = []
    for method, bits, budget in {tuple(name.split("/")[1:4]) for name in cells if name.startswith(f"{network}/")}:
        found = of(cells, network, method, bits, float(budget))
        if bits.startswith("2-") and 100 * mean(found) >= FLOAT[network] - points:
            made.append((relative(network, found[0]), f"`{method}`, {width(bits)}, {budget} terms"))
    return "{:.3f} ({})".format(*min(made)) if made else "none"


def with_terms(cells: Cells, here: Path) -> str:
    text = (
        "## With terms\n\nThe same methods with sums of terms under a budget of 1.5 bit operations relative to one "
        "term throughout: one term -> with the budget (means, where a method draws random numbers). `certified`, "
        "`absmax` and `multipoint` spend it on weights alone, so that what 4-bit activations err remains.\n\n"
    )
    for network in NETWORKS:
        rows = []
        for method in METHODS:
            pairs = [[of(cells, network, method, b, budget) for budget in (1.0, 1.5)] for b in BITS]
            if any(both for _, both in pairs):
                shown_pairs = [f"{100 * mean(one):.2f} -> {100 * mean(two):.2f}" if two else "" for one, two in pairs]
                rows.append([method, *shown_pairs])
        text += f"### {network} (float {FLOAT[network]:.2f})\n\n" + table(["method", *map(width, BITS)], rows) + "\n"
    text += (
        "### The curve F(P)\n\nP relative to one term of W4A8. Lines with dots: sums of 2-bit terms, activations 8 "
        "bits; dotted lines with squares: the same method with one term of 2, 3 and 4 bits.\n\n"
    ) + draw("terms", _curves(cells), (10, 3.6), here)
    rows = []
    for network, method in product(NETWORKS, CURVES):
        for bits in ("2-8", "2-4"):
            budgets = [b for b in _budgets(cells, network, method, bits) if b > 1]
            for found in (of(cells, network, method, bits, budget) for budget in budgets if len(budgets) > 1):
                low, high = found[0]["difference_to_float"]
                ops = [f"{found[0]['operations']:.3f}", f"{relative(network, found[0]):.3f}"]
                to_float = [f"{100 * low:+.2f} to {100 * high:+.2f}", str(found[0]["other_classes"])]
                rows.append([network, method, width(bits), *ops, shown(found), *to_float])
    head = ["network", "method", "width of a term", "P / single", "P / W4A8", "accuracy", "less float, 95 %"]
    text += table([*head, "classes unlike float's"], rows)
    least = "; ".join(f"{network} {_within(cells, network, 0.5)}" for network in NETWORKS)
    return text + f"\nThe least P measured at which 2-bit terms lose at most half a point: {least}.\n\n"


def equal_complexity(cells: Cells) -> str:
    rows = []
    for network, method, (bits, more, budget) in product(
        NETWORKS, METHODS, (("2-8", "3-8", 1.5), ("2-8", "4-8", 2.0), ("2-4", "4-4", 2.0))
    ):
        terms, wide = of(cells, network, method, bits, budget), of(cells, network, method, more, 1)
        if terms and wide:
            rows.append(
                [
                    network,
                    method,
                    f"{width(bits)}, {budget:g} terms",
                    width(more),
                    f"{relative(network, wide[0]):.3f}",
                    shown(terms),
                    shown(wide),
                    f"{100 * (mean(terms) - mean(wide)):+.2f}",
                    f"{terms[0]['weight_bits'] / wide[0]['weight_bits']:.2f}",
                ]
            )
    gaps = [float(row[7]) for row in rows]
    head = ["network", "method", "terms", "more bits", "P / W4A8", "terms", "more bits", "difference", "storage, ratio"]
    note = (
        f"Terms are ahead in {sum(g > 0 for g in gaps)} of {len(gaps)} rows, by {np.median(gaps):+.2f} in the median."
    )
    return (
        "## Terms or more bits\n\nAt equal bit operations: sums of terms, placed where they help most, against one "
        "term with more bits everywhere, by the same method. Storage counts the scales of terms, too. "
        f"{note if gaps else ''}\n\n" + table(head, rows) + "\n"
    )


# ---- the way to lossless --------------------------------------------------------------------------------------


def _unlike(cells: Cells) -> Callable[[Figure], None]:
    def make(figure: Figure) -> None:
        axes = figure.subplots()
        for (network, color), (method, style) in product(
            zip(NETWORKS, (WARM, COOL, INK), strict=True), (("sums", "o-"), ("gptq", "x:"))
        ):
            made = [of(cells, network, method, "2-8", b)[0] for b in _budgets(cells, network, method, "2-8")]
            P = [relative(network, cell) for cell in made]
            unlike = [max(cell["other_classes"], 0.5) for cell in made]
            axes.plot(P, unlike, style, color=color, label=f"{network}, {method}", markersize=4, linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel="P / one term of W4A8", ylabel="classes unlike float's (0 as 0.5)")
        axes.legend(fontsize=8)

    return make


def to_lossless(cells: Cells, here: Path) -> str:
    rows = []
    for network, method in product(NETWORKS, ("sums", *METHODS)):
        budgets = _budgets(cells, network, method, "2-8")
        if not budgets or max(budgets) < LOSSLESS_BUDGET:
            continue
        made = [of(cells, network, method, "2-8", b)[0] for b in budgets]
        reached = first_reached([(relative(network, cell), cell["levels"]) for cell in made])
        most = max(relative(network, cell) for cell in made)
        last = max(made, key=lambda cell: cell["operations"])["other_classes"]
        levels = [f"{P:.2f}" if P else f"not up to {most:.1f}" for P in map(reached.get, LEVELS)]
        rows.append([network, method, *levels, f"{min(budgets):g} to {max(budgets):g}", last])
    return (
        "## The way to lossless\n\nEach method in sums of 2-bit terms, up to 20, activations in up to 3 terms of 8 "
        "bits, counts placed under the budget. `sums`: each weight encoded alone, with certified scales; no method on "
        "top. The least P (relative to one term of W4A8) from which on every measured point reaches a level on the "
        "10,000 test images: `equivalent`, the 95 % interval of the difference in accuracy within half a point; "
        "`class-equal`, every class the float network's; `logits-equal`, bit for bit (float activations are needed for "
        "that: `refquant study` shows it). These are measurements on a grid of budgets, not proofs for other images."
        "\n\n"
        + draw("lossless", _unlike(cells), (7.2, 3.6), here)
        + table(["network", "method", *LEVELS, "budgets measured", "classes unlike float's at the largest"], rows)
        + "\n"
    )


# ---- times, and the whole -------------------------------------------------------------------------------------


def times(cells: Cells) -> str:
    rows = []
    for method in METHODS:
        found = [[c["seconds"] for b in BITS for c in of(cells, network, method, b, 1)] for network in NETWORKS]
        if any(found):
            rows.append([method, *(f"{np.median(f):.0f} (at most {max(f):.0f})" if f else "" for f in found)])
    return (
        "## Time\n\nSeconds of processor time of a method with one BLAS thread, median over widths.\n\n"
        + table(["method", *NETWORKS], rows)
        + "\n"
    )


def every_cell(cells: Cells) -> str:
    rows = []
    for name, cell in sorted(cells.items(), key=lambda kv: (kv[0].split("/")[:3], float(kv[0].split("/")[3]), kv[0])):
        network, method, bits, budget, seed = name.split("/")
        low, high = (100 * v for v in cell["interval"])
        values = (cell["calibration_divergence"], cell.get("spare_divergence", np.nan))
        rows.append(
            [network, method, width(bits), budget, seed, f"{100 * cell['accuracy']:.2f}", f"{low:.2f} to {high:.2f}"]
            + [f"{v:.4g}" for v in values]
            + [f"{relative(network, cell):.3f}", f"{cell['weight_bits'] / 8192:.1f}", f"{cell['seconds']:g}"]
        )
    head = [
        "network",
        "method",
        "width",
        "budget",
        "seed",
        "accuracy",
        "95 %",
        "calibration loss",
        "spare images' loss",
    ]
    return (
        "# Every cell\n\nMade by `docs/make_methods.py`; do not edit. Losses: the mean divergence of the softmax of "
        "the logits from the float network's, in nats, on the 512 calibration images and on 512 others of the training "
        "split.\n\n" + table([*head, "P / W4A8", "weights, KiB", "seconds"], rows)
    )


def render(cells: Cells, here: Path) -> None:
    """Write methods.md, its plots and methods_cells.md."""
    wanted = [[of(cells, n, m, b, budget) for n, m, b in product(NETWORKS, METHODS, BITS)] for budget in (1, 1.5)]
    drawn = [of(cells, n, m, b, budget) for n, m, b, budget in product(NETWORKS, RANDOM, BITS, (1, 1.5))]
    note = (
        f"Measured: {sum(map(bool, wanted[0]))} of {len(wanted[0])} cells of one term, {sum(map(bool, wanted[1]))} of "
        f"{len(wanted[1])} with terms. Of {len(drawn)} cells of methods that draw random numbers "
        f"{sum(len(found) >= SEEDS for found in drawn)} have {SEEDS} seeds.\n"
    )
    text = (
        "# Methods compared\n\nMade by `docs/make_methods.py`; do not edit. Calibration: the first 512 embedded images "
        "of the training split, without labels except for `lapq` and the weightings that say so. No run looks at a "
        "test image for a choice. Defaults of the learned methods were chosen on 512 further images of the training "
        "split ([defaults.md](defaults.md)); the settings that this choice began with, what it did not vary, and "
        "`descent` were settled when accuracies on test images had been seen, so these figures may be optimistic by a "
        "little, as the tools' are. Losses, intervals, storage and times of every cell: "
        "[methods_cells.md](methods_cells.md). Which of the papers' claims hold here: [claims.md](claims.md).\n\n"
    )
    parts = (
        single_terms(cells, here),
        against_tools(cells),
        with_terms(cells, here),
        equal_complexity(cells),
        to_lossless(cells, here),
        times(cells),
    )
    (here / "methods.md").write_text(text + "".join(parts) + note, encoding="utf-8")
    (here / "methods_cells.md").write_text(every_cell(cells), encoding="utf-8")
