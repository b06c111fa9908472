"""Make docs/accumulation.md and its figures: how errors pile up on the embedded networks, attributed and forecast.

python docs/make_accumulation.py [--quick]
"""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from pages import draw, spaced

import refquant as rq
from refquant.net.fold import fold_batch_norm
from refquant.report.style import COOL, INK, WARM
from refquant.theory.accumulate import Attribution, attribute_error, mean_square
from refquant.theory.distortion import distortion_of_cells, distortion_of_law, fitted, measured_distortion
from refquant.theory.excess import Excess, excess
from refquant.theory.forecast import Forecast, forecast_error, forecast_layers
from refquant.theory.mismatch import mismatch
from refquant.theory.pair import images_of, pair_of
from refquant.theory.ratios import decibels

HERE = Path(__file__).parent
QUICK = "--quick" in sys.argv
IMAGES = {"mlp": 64, "cnn": 16} if QUICK else {"mlp": 256, "cnn": 64, "resnet": 24}
DATA = rq.load_data("fashion-mnist")


@cache
def plan(name: str, bits: int, profile: str = "seed-nearest@1") -> rq.QuantPlan:
    return rq.quantize_network(
        rq.load_network(name), DATA.calibration.x[:64], bits=(bits, bits), method="absmax", profile=profile
    )


def test_images(name: str) -> np.ndarray:
    return DATA.test.x[: IMAGES[name]]


def measured(name: str, quantized: rq.QuantPlan, x: np.ndarray, layers: list[str]) -> dict[str, float]:
    """E|e|^2 at the outputs of layers."""
    pair, feeds = pair_of(rq.load_network(name), quantized), images_of(rq.load_network(name), x)
    tape, moved = (pair.run(feeds, pair.graph.output, sources) for sources in ((), pair.sources))
    return {layer: mean_square(moved.values[layer] - tape.values[layer]) for layer in layers}


# ---- attribution ----------------------------------------------------------------------------------------------


def identity() -> str:
    rows, last = [], None
    for name in IMAGES:
        for bits in (8, 6, 4, 3, 2):
            given = rq.load_network(name), plan(name, bits), test_images(name)[:8]
            found, mirrored = attribute_error(*given), attribute_error(*given, order="mirrored")
            shares = np.array(list(found.shares.values()))
            alone = sum(found.alone.values()) / found.mse
            worse = max(found.residual, mirrored.residual)
            rows.append(
                [name, str(bits), f"{worse:.0e}", f"{found.interaction / found.mse:+.2f}",
                 f"{alone:.2f}", str(int((shares < 0).sum())), f"{shares.max():.2f}"]
            )  # fmt: skip
            last = found if bits == 4 else last
    assert last is not None
    head = ["network", "bits", "residual", "interaction / MSE", "sum of alone / MSE", "negative shares"]
    return (
        "## Contributions add up\n\nThe error of the logits on 8 test images, weights and activations at so many "
        "bits. Residual: of the sum of contributions from the error, relative, the worse of both orders; the "
        "promise is 1e-12. Where contributions are attributed by runs with one source alone, the sum misses the "
        "error by the next columns.\n\n"
        + spaced([*head, "largest share"], rows)
        + draw("waterfall", lambda figure: waterfall(figure, last), (7.2, 4.4))
        + draw("gram", lambda figure: gram(figure, last), (5.4, 4.6))
    )


def waterfall(figure: Figure, found: Attribution) -> None:
    ax = figure.subplots()
    shares = found.shares
    bottom = np.concatenate([[0.0], np.cumsum(list(shares.values()))])
    colors = [COOL if source.kind == "weight" else WARM for source in shares]
    names = [str(source) for source in shares]
    ax.bar(names, list(shares.values()), bottom=bottom[:-1], color=colors)
    alone = np.array([found.alone[source] for source in shares]) / found.mse
    ax.plot(names, alone, "_", color=INK, ms=9, label="alone, measured")
    ax.axhline(1, color=INK, lw=0.7, ls="--")
    ax.set_ylabel("share of the squared error")
    ax.set_title(f"{list(IMAGES)[-1]}, 4 bits: shares, added up (weights blue, activations red)", fontsize=9)
    ax.tick_params(axis="x", rotation=90, labelsize=7)
    ax.legend(frameon=False, fontsize=8)


def gram(figure: Figure, found: Attribution) -> None:
    ax = figure.subplots()
    K = found.gram / found.mse
    most = float(np.abs(K).max())
    image = ax.imshow(K, cmap="RdBu_r", vmin=-most, vmax=most)
    names = [str(source) for source in found.contributions]
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    ax.set_yticks(range(len(names)), names, fontsize=6)
    ax.grid(False)
    ax.set_title("E u_i u_j / E|e|^2: off the diagonal, interaction", fontsize=9)
    figure.colorbar(image, ax=ax, shrink=0.8)


# ---- forecast -------------------------------------------------------------------------------------------------


def forecasts() -> str:
    rows: list[list[str]] = []
    drawn: dict[tuple[str, int], list[tuple[float, Forecast]]] = {}
    counts, error = {bits: [0, 0, 0] for bits in (8, 6, 4)}, 0.0
    for name in IMAGES:
        x = test_images(name)
        for bits in (8, 6, 4):
            found = forecast_layers(rq.load_network(name), plan(name, bits), x, rng=np.random.default_rng(0))
            errors = measured(name, plan(name, bits), x, list(found))
            for layer, f in found.items():
                db = decibels(errors[layer] / f.signal)
                drawn.setdefault((name, bits), []).append((db, f))
                error = max(error, -decibels(1 + f.standard_error / f.mse))
                off, tolerance = f.sqnr_db - db, 1.5 if bits == 4 else 0.5
                counts[bits][0] += 1
                counts[bits][1] += abs(off) <= tolerance
                steps = ["", "", "", ""]
                if abs(off) > tolerance:
                    why = excess(rq.load_network(name), plan(name, bits), x, at=layer, rng=np.random.default_rng(0))
                    steps = [f"{v:+.2f}" for v in (why.kinks, why.between, why.within, why.power)]
                    counts[bits][2] += explained(why, tolerance)
                rows.append(
                    [name, str(bits), layer, f"{db:.2f}", f"{off:+.2f}", f"{f.harmonic_db - db:+.2f}",
                     f"{f.product_db - db:+.2f}", *steps]
                )  # fmt: skip
    head = ["network", "bits", "layer", "measured dB", "forecast", "harmonic", "product"]
    said = "; ".join(
        f"at {bits} bits {within} of {total} layers within {'1.5' if bits == 4 else '0.5'} dB, and {why} of the "
        f"other {total - within} but for `between`"
        for bits, (total, within, why) in counts.items()
    )
    return (
        "## Forecast against measured, layer by layer\n\nSQNR at the output of every Conv and Gemm on "
        f"{', '.join(f'{n} ({name})' for name, n in IMAGES.items())} test images, and how far above it three models "
        f"are: the forecast, the harmonic rule, the product form. In short: {said}. Where the forecast is further "
        "off, the last columns say why (`theory/excess.py`): slopes that change, correlation of different tensors' "
        "errors with each other and with what is known, of one tensor's elements, and power that is not alpha^2 / "
        "12. Forecasts are estimated by probes: their standard error is up to "
        f"{error:.1f} dB; the last columns are by probes of their own, and add up to the forecast's distance but for "
        "that.\n\n"
        + draw("depth", lambda figure: depth(figure, drawn), (7.4, 3.4))
        + spaced([*head, "kinks", "between", "within", "power"], rows)
    )


def grids() -> str:
    rows = []
    for name, bits in (("cnn", 8), ("cnn", 6), ("resnet", 8), ("resnet", 6)):
        if name not in IMAGES:
            continue
        graph, x, rng = rq.load_network(name), test_images(name)[:8], np.random.default_rng(5)
        layers = [node.name for node in pair_of(graph, rq.QuantPlan()).graph.linear_nodes][
            1 :: 1 if name == "cnn" else 3
        ]
        powers: dict[str, list[tuple[float, float]]] = {layer: [] for layer in layers}
        for k in range(3 if QUICK else 12):
            moved = stretched(plan(name, bits), rng)
            errors = measured(name, moved, x, layers)
            for layer in layers:
                f = forecast_error(graph, moved, x, at=layer, rng=np.random.default_rng(k), probes=4)
                powers[layer].append((errors[layer] / f.signal, f.mse / f.signal))
        for layer, found in powers.items():
            each = [decibels(f) - decibels(e) for e, f in found]
            mean = decibels(np.mean([f for _, f in found])) - decibels(np.mean([e for e, _ in found]))
            rows.append([name, str(bits), layer, f"{min(each):+.2f} ... {max(each):+.2f}", f"{mean:+.2f}"])
    return (
        "## The same over many grids\n\nThe scales of all activations stretched by factors of their own, uniform "
        "from 1 to 1.25, twelve times, on 8 images: how far the forecast SQNR is above the measured, each time, "
        "and for the means of both powers. Background is alike in all images, and what it adds is one error of one "
        "sign: that is what a single "
        "grid decides.\n\n" + spaced(["network", "bits", "layer", "each grid, dB", "mean of grids"], rows)
    )


def stretched(quantized: rq.QuantPlan, rng: np.random.Generator) -> rq.QuantPlan:
    activations = {
        tensor: replace(q, scale=np.asarray(q.scale * rng.uniform(1, 1.25), np.float32))
        for tensor, q in quantized.activations.items()
    }
    return replace(quantized, activations=activations)


def explained(why: Excess, tolerance: float) -> bool:
    return abs(why.total - why.between) <= tolerance


def depth(figure: Figure, drawn: dict[tuple[str, int], list[tuple[float, Forecast]]]) -> None:
    for ax, name in zip(np.atleast_1d(figure.subplots(1, len(IMAGES))), IMAGES, strict=True):
        for bits, color in ((8, COOL), (4, WARM)):
            points = drawn[name, bits]
            layers = range(1, len(points) + 1)
            ax.plot(layers, [db for db, _ in points], "o-", ms=3, color=color, label=f"{bits} bits")
            ax.plot(layers, [f.sqnr_db for _, f in points], "x", ms=5, color=INK)
            ax.plot(layers, [f.harmonic_db for _, f in points], ":", lw=1, color=color)
        ax.set_title(f"{name}", fontsize=9)
        ax.set_xlabel("layer")
    figure.axes[0].set_ylabel("SQNR, dB: o measured, x forecast, .. harmonic")
    figure.axes[0].legend(frameon=False, fontsize=8)


def drift() -> str:
    rows = []
    for name in IMAGES:
        graph, x = rq.load_network(name), test_images(name)
        output = pair_of(graph, rq.QuantPlan()).graph.output
        for bits in (8, 6):
            floor = plan(name, bits, "seed-floor@1")
            f = forecast_error(graph, floor, x)
            plans = floor, corrected(name, floor, x), plan(name, bits)
            values = [measured(name, p, x, [output])[output] for p in plans]
            before, after, nearest = (decibels(v / f.signal) for v in values)
            rows.append(
                [name, str(bits), f"{nearest:.2f}", f"{before:.2f}", f"{f.sqnr_db:.2f}", f"{after:.2f}",
                 f"{decibels(f.corrected_mse / f.signal):.2f}", f"{100 * mean_square(f.mean) / f.mse:.1f} %"]
            )  # fmt: skip
    head = ["network", "bits", "nearest", "floor", "forecast", "floor, corrected", "forecast", "known mean"]
    return (
        "## What floor's bias costs, and what bias correction recovers\n\nSQNR of the logits in dB, the seed's "
        "floor for weights and activations. Correction takes each layer's bias down by the mean error of its "
        "channels, first layer first, on the same images. At 6 bits the error is no longer small against the "
        "signal, and first order says less.\n\n" + spaced(head, rows)
    )


def corrected(name: str, quantized: rq.QuantPlan, x: np.ndarray) -> rq.QuantPlan:
    graph, biases = rq.load_network(name), dict(quantized.biases)
    for node in pair_of(graph, quantized).graph.linear_nodes:
        now, feeds = pair_of(graph, replace(quantized, biases=dict(biases))), images_of(graph, x)
        e = now.run(feeds, node.name, now.sources).output - now.run(feeds, node.name, ()).output
        folded = fold_batch_norm(graph)
        own = folded.param(folded.node(node.name), "bias") if "bias" in node.params else np.zeros(e.shape[1])
        biases[node.name] = (own - e.mean(axis=(0, *range(2, e.ndim)))).astype(np.float32)
    return replace(quantized, biases=biases)


def classes() -> str:
    rows = []
    for name in IMAGES:
        graph, x = rq.load_network(name), test_images(name)
        for bits in (8, 6, 5, 4):
            found = mismatch(forecast_error(graph, plan(name, bits), x))
            pair, feeds = pair_of(graph, plan(name, bits)), images_of(graph, x)
            tape, moved = (pair.run(feeds, pair.graph.output, s).output.argmax(axis=1) for s in ((), pair.sources))
            values = (found.chebyshev_bound, found.hoeffding_bound, found.gaussian_estimate)
            rows.append([name, str(bits), *(f"{100 * v.mean():.2f}" for v in (moved != tape, *values))])
    head = ["network", "bits", "measured", "Chebyshev (Sakr)", "Hoeffding", "Gaussian union"]
    return (
        "## How often the class changes\n\nPer cent of the images. The first two models are bounds within the "
        "noise model, "
        "not for these images; the last is an estimate.\n\n" + spaced(head, rows)
    )


# ---- one tensor -----------------------------------------------------------------------------------------------


def tensors() -> str:
    rows = []
    for name in IMAGES:
        graph = fold_batch_norm(rq.load_network(name))
        _, trace = rq.forward(graph, DATA.test.x[:16], trace=True)
        for node in graph.linear_nodes:
            both = (("weight", graph.param(node, "weight")), ("input", trace[node.inputs[0]]))
            for kind, tensor in both:
                law_name, law, share = fitted(tensor)
                cells = []
                for profile in ("seed-nearest@1", "seed-floor@1"):
                    for bits in (8, 4):
                        spec = rq.profile(profile, bits=bits, signed=bool(tensor.min() < 0))
                        scale = float(np.abs(tensor).max() / spec.qmax)
                        found = measured_distortion(tensor, scale, spec=spec)
                        even = distortion_of_cells(scale, rounding=spec.rounding).beside(share)
                        fit = distortion_of_law(law, scale, spec=spec).beside(share)
                        cells.append(f"{decibels(found.mse / even.mse):+.1f} / {decibels(found.mse / fit.mse):+.1f}")
                    cells.append(f"{found.bias_cost_db:.1f}")
                rows.append([name, node.name, kind, f"{law_name}, {100 * share:.0f} % zeros", *cells])
    head = ["network", "layer", "tensor", "fitted law", "nearest, 8", "nearest, 4", "bias, 4", "floor, 8", "floor, 4"]
    return (
        "## One tensor at a time\n\nPer tensor, at absmax scales. How many dB the error is below that of two "
        "models: evenly filled cells (alpha^2 / 12, for floor alpha^2 / 3, zeros apart), and the fitted law, whose "
        "tails reach beyond the tensor's largest value and count clipping that is none. Bias: what it costs at 4 "
        "bits, in dB.\n\n" + spaced([*head, "bias, 4"], rows)
    )


def main() -> None:
    """Write accumulation.md and its figures beside this file."""
    head = (
        "# How errors pile up\n\nMade by `docs/make_accumulation.py`: weights per channel and activations per "
        "tensor, absmax scales from 64 calibration images, measured on test images, in float64. Contributions are "
        "an identity; everything called a forecast is a model.\n\n"
    )
    parts = [part() for part in (identity, forecasts, grids, drift, classes, tensors)]
    (HERE / "accumulation.md").write_text(head + "".join(parts).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
