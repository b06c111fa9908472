"""Make docs/solvers.md and its figure: what others' rules leave on the table, by the certified answers.

python docs/make_solvers.py [--quick]
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from pages import table

import refquant as rq
from refquant.net.fold import fold_batch_norm
from refquant.report.style import COOL, INK, STYLE, WARM, svg
from refquant.solve.heuristics import RULES, compare, rule_scale
from refquant.solve.hull import marginal_greedy
from refquant.solve.joint import DRIVERS, minimize_scales
from refquant.solve.rounding_oracle import ROUNDINGS, best_rounding, rounding_error
from refquant.solve.scale import squared_error
from refquant.solve.sums import best_sum, codebook_bound

HERE = Path(__file__).parent
SIZES = (9, 27, 64, 144, 288, 576, 1152, 4608)
BITS = (2, 3, 4, 8)
SLOW = ("entropy",)  # half a second a channel: every twentieth is graded


def channels(count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Channels as trained weights have them: four laws in turn, sizes in turn, every fifth with one outlier."""
    rng = np.random.default_rng(16)
    laws: list[Callable[..., Any]] = [
        rng.normal,
        rng.laplace,
        lambda size: rng.standard_t(3, size),
        lambda size: rng.uniform(-1, 1, size),
    ]
    for i in range(count):
        x = laws[i % 4](size=SIZES[i // 4 % len(SIZES)])
        if i % 5 == 4:
            x[0] = 5 * np.abs(x).max()
        yield ("normal", "laplace", "t", "uniform")[i % 4], x


def percent(v: float) -> str:
    return f"{100 * v:+.2f} %" if abs(v) < 10 else f"{v + 1:.0f} x"


def graded(rows: list[np.ndarray], bits: int) -> dict[str, np.ndarray]:
    """Each rule's excess over the certified optimum on every channel."""
    spec, excess = rq.QuantSpec(bits), {name: [] for name in RULES}  # type: dict[str, list[float]]
    for i, x in enumerate(rows):
        solution = rq.solve_scale(x, spec=spec)
        names = [name for name in RULES if name not in SLOW or i % 20 == 0]
        for row in compare(x, spec=spec, solution=solution, rules=names):
            excess[row["rule"]].append(row["median_excess"])
    return {name: np.array(v) for name, v in excess.items()}


def scales(quick: bool) -> str:
    count = 230 if quick else 2300
    made = [x for _, x in channels(count)]
    by_bits = {b: graded(made, b) for b in BITS}
    rows = []
    for name, rule in RULES.items():
        shown = [(np.median(by_bits[b][name]), np.quantile(by_bits[b][name], 0.95)) for b in BITS]
        rows.append([name, *(f"{percent(low)} / {percent(high)}" for low, high in shown), rule.source])
    head = ["rule", *(f"{b} bits" for b in BITS), "source"]
    text = (
        f"## Scales: {count * len(BITS):,} synthetic channels\n\n{count:,} channels of 9 to 4,608 values (normal, "
        "Laplace, Student's t with 3 degrees of freedom and uniform in turn, every fifth with one outlier), at each of "
        "four widths. Excess of the squared error over the certified optimum, median / 95th percentile; `entropy` on "
        "every twentieth channel.\n\n" + table(head, rows)
    )
    rows = []
    for network in ("mlp", "cnn", "resnet"):
        graph = fold_batch_norm(rq.load_network(network))
        weights = [graph.param(node, "weight") for node in graph.linear_nodes]
        kept = [row.astype(np.float64) for w in weights for row in w.reshape(len(w), -1)][:: 8 if quick else 2]
        for b in (2, 4, 8):
            found = graded(kept, b)
            rows.append([network, str(b), str(len(kept)), *(percent(np.median(found[n])) for n in REAL)])
    text += (
        "\n## Scales: the output channels of the embedded networks\n\nMedian excess on every second output channel of "
        "every weight, batch norms folded.\n\n" + table(["network", "bits", "channels", *REAL], rows)
    )
    return text


REAL = ("absmax", "percentile", "brevitas-grid", "mqbench", "llm-compressor", "brecq", "octav", "oscar", "brent")


def figure() -> None:
    """SSE(alpha) of one channel at 8 bits: its local minima, and where everyone stops."""
    rng = np.random.default_rng(3)
    x, spec = rng.normal(size=288), rq.QuantSpec(8)
    best = rq.solve_scale(x, spec=spec)
    alpha = np.linspace(0.6, 1.25, 24_000) * float(best.value)
    tiled = np.broadcast_to(x, (2000, x.size))
    parts = [squared_error(tiled, np.ones_like(tiled), part, spec) for part in alpha.reshape(-1, 2000)]
    sse = np.concatenate(parts)
    inner = np.flatnonzero((sse[1:-1] < sse[:-2]) & (sse[1:-1] <= sse[2:])) + 1
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(7.6, 4.2))
        ax = fig.subplots()
        ax.plot(alpha, sse, color=INK, lw=0.5, label="SSE(alpha), 8 bits, 288 normal values")
        ax.plot(alpha[inner], sse[inner], ".", ms=2.5, color=COOL, label=f"{len(inner)} local minima on this grid")
        for i, name in enumerate(("absmax", "brevitas-grid", "mqbench", "octav", "oscar", "bounded", "brent")):
            s = rule_scale(x, name, spec=spec)
            y = float(squared_error(x[None], np.ones((1, x.size)), np.array([s]), spec)[0])
            ax.plot(s, y, "x", ms=7, color=WARM)
            ax.annotate(name, (s, y), xytext=(5, 10 + 11 * (i % 3)), textcoords="offset points", fontsize=7, color=WARM)
        ax.plot(float(best.value), float(best.objective), "*", ms=13, color=COOL, label="certified optimum")
        ax.set_ylim(0.97 * float(best.objective), float(np.quantile(sse, 0.97)))
        ax.set_xlabel("alpha")
        ax.set_ylabel("squared error")
        ax.legend(frameon=False, fontsize=8)
        (HERE / "sse.svg").write_text(svg(fig), encoding="utf-8")


def terms(quick: bool) -> str:
    rows = []
    for bits, T, n in ((2, 2, 9), (2, 2, 64), (2, 2, 576), (3, 2, 64), (2, 3, 32)):
        spec = rq.QuantSpec(bits, narrow=True)
        ratios: dict[str, list[float]] = {"greedy": [], "ladder": [], "joint": []}
        gaps, bounds = [], []
        for seed in range(4 if quick else 20):
            x = np.random.default_rng(seed).normal(size=n).astype(np.float32)
            sums = {m: rq.encode_terms(x, spec=spec, terms=T, method=m) for m in ratios}
            tol = 0.02 if T == 2 else 0.2
            best = best_sum(x, specs=(spec,) * T, start=sums["joint"].scales, tol=tol)
            for m, s in sums.items():
                ratios[m].append(float(np.sum((x - s.decode(np.float64)) ** 2)) / float(best.objective) - 1)
            gaps.append(float(best.gap) / float(best.objective))
            bounds.append(codebook_bound(x, (2**bits - 1) ** T) / float(best.objective))
        cells = [percent(float(np.median(ratios[m]))) for m in ratios]
        rows.append([f"{T} terms of {bits} bits, n = {n}", *cells, percent(max(gaps)), f"{np.median(bounds):.2f}"])
    head = ["normal rows", "greedy", "ladder", "joint", "largest gap of the certified best", "best codebook / best sum"]
    return (
        "\n## Sums of terms\n\nMedian excess of the squared error over the best sum that branch and bound found (with "
        "the gap that it proves). The last column is the bound that needs no search.\n\n" + table(head, rows)
    )


def allocation(quick: bool) -> str:
    worst: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(100 if quick else 1000):
        rng = np.random.default_rng(seed)
        error = np.sort(rng.exponential(size=(20, 4)), axis=1)[:, ::-1] * 10.0 ** rng.uniform(-1, 1, (20, 1))
        cost = np.cumsum(rng.integers(1, 10, (20, 4)), axis=1).astype(float)
        budget = float(cost.min(axis=1).sum() + rng.uniform(0.1, 0.9) * (cost.max(axis=1) - cost.min(axis=1)).sum())
        best = float(rq.allocate(error, cost, budget).objective)
        for stop in worst:
            chosen = marginal_greedy(error, cost, budget, stop=stop)
            worst[stop].append(error[np.arange(20), chosen].sum() / best - 1)
    rows = [
        [name, *(percent(f(worst[stop])) for f in (np.median, np.mean, np.max))]
        for name, stop in (("marginal greedy, skipping what does not fit", False), ("ending at first overflow", True))
    ]
    return (
        "\n## Allocations\n\n20 layers, 4 choices each, random tables and budgets: excess of the total error over the "
        "exact allocation.\n\n" + table(["heuristic", "median", "mean", "greatest"], rows)
    )


def rounding(quick: bool) -> str:
    excess: dict[str, list[float]] = {name: [] for name in ROUNDINGS}
    for seed in range(20 if quick else 200):
        rng = np.random.default_rng(seed)
        inputs = rng.normal(size=(64, 12)) @ rng.normal(size=(12, 12))
        w = rng.normal(size=12)
        spec = rq.QuantSpec(3)
        scale = float(rq.solve_scale(w, spec=spec).value)
        best = best_rounding(w, scale, spec=spec, inputs=inputs)
        R = np.linalg.qr(inputs, mode="r")
        for name, rule in ROUNDINGS.items():
            excess[name].append(rounding_error(rule(R, w / scale, spec), w, scale, inputs) / float(best.objective) - 1)
    rows = [[name, *(percent(float(f(v))) for f in (np.median, np.mean, np.max))] for name, v in excess.items()]
    return (
        "\n## Rounding against the exact codes\n\nRows of 12 weights at 3 bits, correlated inputs: excess of the "
        "output error over the exact minimum.\n\n" + table(["rounding", "median", "mean", "greatest"], rows)
    )


def joint(quick: bool) -> str:
    rows = []
    for bits, n, points in ((2, 2, 60), (4, 2, 60), (3, 3, 20)):
        rng = np.random.default_rng(bits)
        X = [rng.normal(size=(24, 24)) for _ in range(n)]
        spec, whole = rq.QuantSpec(bits), reduce(np.matmul, X)

        def loss(s: np.ndarray, X: list[np.ndarray] = X, spec: rq.QuantSpec = spec, whole: Any = whole) -> float:
            parts = [rq.fake_quantize(x, v, spec=spec) for x, v in zip(X, s, strict=True)]
            return float(np.mean((reduce(np.matmul, parts) - whole) ** 2))

        own = np.array([float(rq.solve_scale(x, spec=spec).value) for x in X])
        grid = min(loss(own * np.array(g)) for g in itertools.product(np.geomspace(0.4, 1.6, points), repeat=n))
        cells = [f"{n} scales, {bits} bits", percent(loss(own) / grid - 1)]
        for method in DRIVERS:
            found = minimize_scales(loss, own, method=method, rounds=6)
            cells.append(f"{percent(found.loss / grid - 1)} ({found.evaluations})")
        rows.append(cells)
    return (
        "\n## Joint scales\n\nThe squared error of a product of quantized matrices, relative to a dense grid of "
        "scales; evaluations in brackets.\n\n" + table(["problem", "each tensor's own optimum", *DRIVERS], rows)
    )


def main() -> None:
    """Write solvers.md and sse.svg beside this file."""
    quick = "--quick" in sys.argv
    head = (
        "# What the solvers' answers say of others'\n\nMade by `docs/make_solvers.py`; every figure is relative to an "
        "answer that carries its proof. The rules are restated from their definitions "
        "(`refquant/solve/heuristics.py`); they are not the programs that they come from.\n\n"
        "![SSE(alpha) has many local minima](sse.svg)\n\n"
    )
    figure()
    parts = [part(quick) for part in (scales, terms, allocation, rounding, joint)]
    (HERE / "solvers.md").write_text(head + "".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
