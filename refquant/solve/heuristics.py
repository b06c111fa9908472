"""How others choose a scale: their rules restated from their definitions, to be graded by the certified optimum.

Letters: x one row of values, a = |x|, b bits, H = 2^(b-1), amax = max a, e error.

Every rule gives a scale for rounding to nearest with zero point 0 on the codes -H..H-1 (`spec`), as the source does for
symmetric weights, and is graded there: what follows are rules, not the programs they come from.  Grids try their
candidates in the source's order and keep the first of least error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from ..errors import ArgumentError, complaint
from ..quant.granularity import PerTensor
from ..quant.spec import QuantSpec
from .scale import squared_error
from .solution import Solution

__all__ = ["RULES", "Rule", "compare", "rule_scale"]

Array = NDArray[np.float64]

# ---- shared -----------------------------------------------------------------------------------------------------


def _errors(x: Array, scales: NDArray[np.floating], spec: QuantSpec, p: float) -> Array:
    """sum |x - x^|^p at each scale."""
    out = np.empty(len(scales))
    for i, s in enumerate(scales):
        out[i] = np.sum(np.abs(x - s * np.clip(np.rint(x / s), spec.qmin, spec.qmax)) ** p)
    return out


def _first_best(x: Array, scales: Array, spec: QuantSpec, p: float = 2.0) -> float:
    return float(scales[int(_errors(x, scales, spec, p).argmin())])


def _half(spec: QuantSpec) -> float:
    """(qmax - qmin) / 2: 127.5 for int8."""
    return (spec.qmax - spec.qmin) / 2


def _amax(x: Array) -> float:
    return float(np.abs(x).max())


def _shrinking(steps: int, step: float, p: float, patience: int = 0) -> Callable[[Array, QuantSpec], float]:
    """Ranges 1, 1 - step, ... of amax over half the steps; stop after `patience` steps without gain (0: never)."""

    def rule(x: Array, spec: QuantSpec) -> float:
        scales = _amax(x) * (1 - step * np.arange(steps)) / _half(spec)
        errors = _errors(x, scales, spec, p)
        best = 0
        for i in range(1, steps):
            if errors[i] < errors[best]:
                best = i
            elif patience and i - best >= patience:
                break
        return float(scales[best])

    return rule


# ---- ranges ---------------------------------------------------------------------------------------------------


def _absmax(x: Array, spec: QuantSpec) -> float:
    return _amax(x) / spec.qmax


def _absmax_half(x: Array, spec: QuantSpec) -> float:
    return _amax(x) / _half(spec)


def _percentile(q: float) -> Callable[[Array, QuantSpec], float]:
    def rule(x: Array, spec: QuantSpec) -> float:
        """The left edge of the bin of |x| that reaches the quantile, of 2,048 bins."""
        counts, edges = np.histogram(np.abs(x), bins=2048)
        at = int(np.searchsorted(np.cumsum(counts) / x.size, q / 100))
        return float(edges[at] if edges[at] > 0 else edges[-1]) / _half(spec)

    return rule


# ---- grids over the squared error -----------------------------------------------------------------------------


def _brevitas_grid(x: Array, spec: QuantSpec) -> float:
    """amax k / 20 for k = 1..20, over H (its int8 activations; narrow weights divide by H - 1)."""
    return _first_best(x, _amax(x) * np.arange(1, 21) / 20 / -spec.qmin, spec)


def _brevitas_fibonacci(x: Array, spec: QuantSpec) -> float:
    """Fibonacci search between amax / 20 and amax, as if the error had one minimum; the last point, not the best."""
    F = [0, 1]
    while len(F) <= 20:
        F.append(F[-1] + F[-2])

    def f(t: float) -> float:
        return float(_errors(x, np.array([t / -spec.qmin]), spec, 2.0)[0])

    left, right = _amax(x) / 20, _amax(x)
    extent = right - left
    length = F[18] / F[20] * extent
    low = high = left
    f_low = f_high = 0.0
    for i in range(2, 21):
        low, high = (right - length, left + length) if length > extent / 2 else (left + length, right - length)
        f_low, f_high = f(low), f(high)
        if f_low <= f_high:
            right = high
        if f_low >= f_high:
            left = low
        length = F[20 - i] / F[22 - i] * (extent if f_low != f_high else right - left)
        extent = right - left
    return (low if f_low <= f_high else high) / -spec.qmin


def _aimet(x: Array, spec: QuantSpec) -> float:
    """Steps k / 100 of 2 amax / (2^b - 1), k = 1..101, on a histogram of 512 bins; clipped error weighs 3 times."""
    counts, edges = np.histogram(x, bins=512)
    v = (edges[1:] + edges[:-1]) / 2
    deltas = 2 * _amax(x) / (spec.qmax - spec.qmin) * np.arange(1, 102) / 100
    costs = []
    for d in deltas:
        code = np.rint(v / d)
        weight = np.where((code < spec.qmin) | (code > spec.qmax), 3.0, 1.0)
        costs.append(np.sum(counts * weight * (v - d * np.clip(code, spec.qmin, spec.qmax)) ** 2))
    return float(deltas[int(np.argmin(costs))])


def _ppq(x: Array, spec: QuantSpec) -> float:
    """2,048 bins of |x| and 2^b levels, one every `step` bins: the step that it models is half the real one."""
    counts, _ = np.histogram(np.abs(x), bins=2048, range=(0.0, _amax(x)))
    width, levels, index = _amax(x) / 2048, spec.qmax - spec.qmin + 1, np.arange(2048)
    best, scale = np.inf, 1.0
    for step in (2048 // levels + 1, *range(1, 2048 // levels + 1)):
        end = levels * step
        left, right = index % step, step - index % step - 1
        inside = np.where(left == right, left + 0.25, np.minimum(left, right) + 0.5)
        loss = float(np.sum(counts * np.where(index > end, index - end + 0.5, inside) ** 2))
        if loss < best:
            best, scale = loss, 2 * end * width / (spec.qmax - spec.qmin)
    return scale


def _torch_histogram(x: Array, spec: QuantSpec) -> float:
    """The range is narrowed from the side where fewer bins hold 1e-5 of the mass, while the binned error falls."""
    counts, edges = np.histogram(x, bins=2048)
    w, N, total = edges[1] - edges[0], 2**spec.bits, x.size
    mass = np.cumsum(counts)

    def norm(start: int, end: int) -> float:
        D = w * (end - start + 1) / N
        if D == 0:
            return 0.0
        u = (np.arange(2048) - start) * w
        v = u + w
        p, q = (np.clip(np.floor(t / D), 0, N - 1) for t in (u, v))
        first = ((D / 2) ** 3 - (u - (p + 0.5) * D) ** 3) / 3
        last = ((v - (q + 0.5) * D) ** 3 + (D / 2) ** 3) / 3
        return float(np.sum(counts / w * (first + (q - p - 1) * D**3 / 12 + last)))

    alpha, beta, start, end, least = 0.0, 1.0, 0, 2047, np.inf
    while alpha < beta:
        a, b = alpha + 1e-5, beta - 1e-5
        l = max(start, min(end, int(np.searchsorted(mass, a * total))))
        r = min(end, max(start, int(np.searchsorted(mass, b * total, side="right")) - 1))
        if l - start > end - r:
            then, alpha = (l, end), a
        else:
            then, beta = (start, r), b
        if then == (start, end):
            continue
        found = norm(*then)
        if found > least:
            break
        (start, end), least = then, found
    low, high = edges[0] + w * start, edges[0] + w * (end + 1)
    return float(max(-low, high)) / _half(spec)


# ---- densities ------------------------------------------------------------------------------------------------


def _entropy(x: Array, spec: QuantSpec) -> float:
    """The range whose histogram of 2^b - 1 bins is nearest to the clipped one of 8,001 in relative entropy."""
    bins, levels = 8001, 2**spec.bits - 1
    counts, edges = np.histogram(x, bins=bins, range=(-_amax(x), _amax(x)))
    middle, best, limit = bins // 2, np.inf, _amax(x)
    for i in range(levels // 2, middle + 1):
        part = counts[middle - i : middle + i + 1].astype(np.float64)
        p = part.copy()
        p[0] += counts[: middle - i].sum()
        p[-1] += counts[middle + i + 1 :].sum()
        merged = len(part) // levels
        group = np.minimum(np.arange(len(part)) // merged, levels - 1)
        present = p != 0
        sums, filled = np.bincount(group, part, levels), np.bincount(group, part != 0, levels)
        q = np.where(present, (sums / np.maximum(filled, 1))[group], 0.0)
        if not q.any():
            continue
        smooth = []
        for h in (p, q):
            zeros = h == 0
            lent = 1e-4 * zeros.sum() / max(1, (~zeros).sum())
            smooth.append(np.where(zeros, 1e-4, np.maximum(h - lent, 1e-12)))
        P, Q = (h / h.sum() for h in smooth)
        divergence = float(np.sum(P * np.log(P / Q)))
        if divergence < best:
            best, limit = divergence, float(edges[middle + i + 1])
    return limit / _half(spec)


def _aciq_laplace(x: Array, spec: QuantSpec) -> float:
    """The clip of least granular plus overload error for a Laplace law: mean |x| times W(3 4^b), Lambert's function."""
    clip = float(np.mean(np.abs(x - x.mean()))) * float(special.lambertw(3 * 4.0**spec.bits).real)
    return (clip or _amax(x)) / _half(spec)


def _aciq_normal(x: Array, spec: QuantSpec) -> float:
    """The same for a normal law, by its deviation."""

    def loss(c: float) -> float:
        tail = (1 + c * c) * special.erfc(c / np.sqrt(2)) - np.sqrt(2 / np.pi) * c * np.exp(-c * c / 2)
        return float(tail + c * c / (3 * 4.0**spec.bits))

    clip = float(optimize.minimize_scalar(loss, bounds=(0.1, 8), method="bounded").x)
    deviation = float(x.std(ddof=1)) if x.size > 1 else 0.0
    return (clip * deviation or _amax(x)) / _half(spec)


def _octav(x: Array, spec: QuantSpec) -> float:
    """c = sum of |x| > c over (4^-b / 3 #{0 < |x| <= c} + #{|x| > c}), ten times from the mean magnitude."""
    a = np.abs(x[x != 0])
    c = float(a.mean())
    for _ in range(10):
        over = a > c
        c = float(a[over].sum() / (4.0**-spec.bits / 3 * (~over).sum() + over.sum()))
    return min(c if c > 0 else _amax(x), _amax(x)) / spec.qmax


def _oscar(x: Array, spec: QuantSpec) -> float:
    """The clip c that minimises n c^2 / (12 qmax^2) + sum (a - c)_+^2, exactly, over the runs of sorted a."""
    a = np.sort(np.abs(x))[::-1]
    n, k = a.size, np.arange(1, a.size + 1)
    S1, S2, slope = np.cumsum(a), np.cumsum(a * a), n / (12 * spec.qmax**2)
    c = np.clip(S1 / (slope + k), np.append(a[1:], 0.0), a)
    loss = c * c * slope + S2 - 2 * c * S1 + c * c * k
    c, loss = np.append(a[0], c), np.append(a[0] ** 2 * slope, loss)
    return float(max(c[int(loss.argmin())], 1e-300)) / spec.qmax


# ---- searches that trust one minimum ----------------------------------------------------------------------------


def _lp(p: float) -> Callable[[Array, QuantSpec], float]:
    def rule(x: Array, spec: QuantSpec) -> float:
        def loss(clip: float) -> float:
            return float(_errors(x, np.array([max(2 * clip / (2**spec.bits - 1), 1e-8)]), spec, p)[0])

        clip = float(optimize.minimize_scalar(loss, bounds=(1e-9 * _amax(x), _amax(x)), method="bounded").x)
        return float(max(2 * clip / (2**spec.bits - 1), 1e-8))

    return rule


def _bounded(x: Array, spec: QuantSpec) -> float:
    found = optimize.minimize_scalar(
        lambda s: float(_errors(x, np.array([s]), spec, 2.0)[0]),
        bounds=(1e-6 * _amax(x) / spec.qmax, 1.2 * _amax(x) / spec.qmax),
        method="bounded",
    )
    return float(found.x)


def _brent(x: Array, spec: QuantSpec) -> float:
    start = _amax(x) / spec.qmax
    found = optimize.minimize_scalar(
        lambda s: float(_errors(x, np.array([max(abs(s), 1e-300)]), spec, 2.0)[0]), bracket=(0.5 * start, start)
    )
    return max(abs(float(found.x)), 1e-300)


def _half_quadratic(x: Array, spec: QuantSpec) -> float:
    """HQQ's splitting (p = 0.7, beta 10 and 1.01 times more a round, 20 rounds) on the scale instead of the zero point.

    The error is replaced by its proximal point, then the scale is the least-squares one for the codes.
    """
    s, beta, best, kept = _absmax(x, spec), 10.0, np.inf, _absmax(x, spec)
    for _ in range(20):
        q = np.clip(np.rint(x / s), spec.qmin, spec.qmax)
        d = x - s * q
        loss = float(np.mean(np.abs(d)))
        if loss >= best:
            break
        best, kept = loss, s
        with np.errstate(divide="ignore"):
            e = np.sign(d) * np.maximum(np.abs(d) - np.abs(d) ** -0.3 / beta, 0.0)
        energy = float(np.sum(q * q))
        s = float(np.sum(q * (x - e)) / energy) if energy else s
        s, beta = s if s > 0 else kept, beta * 1.01
    return kept


@dataclass(frozen=True)
class Rule:
    """One way to a scale: what it is, where it is written, and the rule from (row, spec)."""

    text: str
    source: str
    scale: Callable[[Array, QuantSpec], float]


_ROWS: list[tuple[str, str, str, Callable[[Array, QuantSpec], float]]] = [
    ("absmax", "largest magnitude / qmax", "TensorFlow Lite, 8-bit specification: weights", _absmax),
    ("absmax-half", "largest magnitude over half the steps", "PyTorch, symmetric observers", _absmax_half),
    ("percentile", "99.99 % of |x|, 2,048 bins", "TensorRT pytorch-quantization, calib/histogram", _percentile(99.99)),
    ("percentile-99.999", "99.999 % of |x|", "ONNX Runtime, quantization/calibrate", _percentile(99.999)),
    ("brevitas-grid", "20 shares of amax", "Brevitas 0.13, core/stats: MSE, grid", _brevitas_grid),
    ("brevitas-fibonacci", "Fibonacci search", "Brevitas 0.13, core/stats: MSE, fibonacci", _brevitas_fibonacci),
    ("mqbench", "80 ranges, 1 to 0.21 of amax", "MQBench, MSEObserver per channel", _shrinking(80, 0.01, 2.0)),
    ("llm-compressor", "20 ranges, |e|^2.4, patience 5", "LLM Compressor, mse observer", _shrinking(20, 0.01, 2.4, 5)),
    ("brecq", "80 ranges, |e|^2.4", "BRECQ, quant_layer: mse; GPTQ's too", _shrinking(80, 0.01, 2.4)),
    ("neural-compressor", "40 ranges, 1 to 0.805", "Intel Neural Compressor, search_clip", _shrinking(40, 0.005, 2.0)),
    ("aimet", "101 steps, 512 bins, clipping weighs 3", "AIMET, TF-enhanced analyzer, symmetric", _aimet),
    ("ppq", "2,048 bins", "PPQ, TorchMSEObserver, symmetric", _ppq),
    ("torch-histogram", "quantiles moved by 1e-5 while it helps", "PyTorch, HistogramObserver", _torch_histogram),
    ("entropy", "least relative entropy of histograms", "MXNet, contrib/quantization; TensorRT", _entropy),
    ("aciq-laplace", "mean |x - mean| W(3 4^b)", "Banner et al. 2019, section 3, Laplace", _aciq_laplace),
    ("aciq-normal", "deviation times a normal law's clip", "Banner et al. 2019, section 3, normal", _aciq_normal),
    ("octav", "10 rounds of its recursion", "Sakr et al. 2022, algorithm 1", _octav),
    ("oscar", "least uniform noise plus overload", "AI Edge Quantizer, oscar: optimal clip", _oscar),
    ("lapq-l2.4", "bounded search on |e|^2.4", "Nahshan et al. 2021, section 4.1, p = 2.4", _lp(2.4)),
    ("hqq-style", "half-quadratic splitting on the scale", "Badri and Shaji 2023, HQQ", _half_quadratic),
    ("bounded", "minimize_scalar, bounded", "SciPy", _bounded),
    ("brent", "minimize_scalar, Brent", "SciPy", _brent),
]

RULES: dict[str, Rule] = {name: Rule(text, source, scale) for name, text, source, scale in _ROWS}
"""name -> rule."""


def rule_scale(x: Array, name: str, *, spec: QuantSpec) -> float:
    """The scale that a rule gives one row; 1 for a row of zeros, whatever the rule.

    x: finite float64, shape (n,).  spec: signed, full range.

    >>> rule_scale(np.array([1.0, -7.0]), "absmax", spec=QuantSpec(4))
    1.0
    """
    return RULES[name].scale(x, spec) if np.any(x) else 1.0


def compare(
    x: ArrayLike, *, spec: QuantSpec, solution: Solution, rules: Sequence[str] = tuple(RULES)
) -> list[dict[str, Any]]:
    """By how much each rule's squared error exceeds the certified optimum of `solve_scale`, over all rows.

    x, spec: those of the solution, whose objective is the squared error without weights and with zero point 0.  Each
    entry has rule, text, source, and median_excess, mean_excess, greatest_excess: relative, 0 for the optimum itself.
    Rows that the optimum quantizes without error (to 1e-14 of their energy) are left out.

    Raises ArgumentError for another objective, a rounding that is not to nearest, and codes that are not signed and of
    full range.

    >>> from .scale import solve_scale
    >>> x, spec = [0.1, -0.4, 1.0, 3.0, 1.0, -1.0], QuantSpec(2)
    >>> compare(x, spec=spec, solution=solve_scale(x, spec=spec), rules=["bounded"])[0]["median_excess"] < 0.5
    True
    """
    one = replace(spec, granularity=PerTensor())
    if not (spec.rounding.startswith("half_") and spec.signed and not spec.narrow):
        got = f"rounding={spec.rounding}, signed={spec.signed}, narrow={spec.narrow}"
        raise ArgumentError(complaint(got, "to nearest, signed, full range", "compare"))
    rows = spec.granularity.rows(np.asarray(x, np.float64))
    energy, best = np.sum(rows * rows, axis=1), np.asarray(solution.objective).ravel()
    scale = np.asarray(solution.value).ravel()
    measured = squared_error(rows, np.ones_like(rows), scale, one)
    if np.any(np.asarray(solution.zero_point) != 0) or not np.allclose(measured, best, rtol=1e-9, atol=0):
        should = "the squared error without weights, zero point 0"
        raise ArgumentError(complaint("a solution for another objective", should, "compare", "solve with the defaults"))
    graded = np.flatnonzero(best > 1e-14 * energy)
    found = []
    for name in rules:
        scales = np.array([rule_scale(rows[i], name, spec=one) for i in graded])
        errors = squared_error(rows[graded], np.ones_like(rows[graded]), scales, one)
        excess = errors / best[graded] - 1 if graded.size else np.zeros(1)
        figures = {"median": np.median(excess), "mean": excess.mean(), "greatest": excess.max()}
        found.append(
            {"rule": name, "text": RULES[name].text, "source": RULES[name].source}
            | {f"{key}_excess": float(v) for key, v in figures.items()}
        )
    return found
