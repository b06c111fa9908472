"""Certified scales against grid searches: medians of paired runs in one process, and growth with n.

python tests/bench/scales.py

Each pair runs in turn, so that what else the machine does meets both alike.  The grids are written as one would in
NumPy, in the type of the weights; `in place` reuses its buffers, which is about the fastest that NumPy does.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

import refquant as rq
from refquant.arith.blas import one_blas_thread


def grid(W: Any, bits: int, steps: int) -> Any:
    """The best of `steps` shrunken ranges for each row, as MQBench does per channel."""
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    top = np.abs(W).max(axis=1, keepdims=True)
    best, scale = np.full((len(W), 1), np.inf, W.dtype), top.copy()
    for i in range(steps):
        s = top * W.dtype.type(1 - 0.01 * i) / W.dtype.type((qmax - qmin) / 2)
        error = (np.abs(np.clip(np.rint(W / s), qmin, qmax) * s - W) ** 2).mean(axis=1, keepdims=True)
        better = error < best
        best, scale = np.where(better, error, best), np.where(better, s, scale)
    return scale


def grid_in_place(W: Any, bits: int, steps: int) -> Any:
    """The same, without allocating."""
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    top, buffer = np.abs(W).max(axis=1, keepdims=True), np.empty_like(W)
    best, scale = np.full((len(W), 1), np.inf, W.dtype), top.copy()
    for i in range(steps):
        s = top * W.dtype.type(1 - 0.01 * i) / W.dtype.type((qmax - qmin) / 2)
        np.divide(W, s, out=buffer)
        np.rint(buffer, out=buffer)
        np.clip(buffer, qmin, qmax, out=buffer)
        np.multiply(buffer, s, out=buffer)
        np.subtract(buffer, W, out=buffer)
        np.multiply(buffer, buffer, out=buffer)
        error = buffer.mean(axis=1, keepdims=True)
        better = error < best
        best, scale = np.where(better, error, best), np.where(better, s, scale)
    return scale


def paired(ours: Callable[[], object], others: Mapping[str, Callable[[], object]], runs: int = 7) -> dict[str, float]:
    """The median of the ratios of times, ours over theirs, after one run of each that does not count."""
    for f in (ours, *others.values()):
        f()
    ratios: dict[str, list[float]] = {name: [] for name in others}
    for _ in range(runs):
        start = time.perf_counter()
        ours()
        mine = time.perf_counter() - start
        for name, f in others.items():
            start = time.perf_counter()
            f()
            ratios[name].append(mine / (time.perf_counter() - start))
    return {name: float(np.median(r)) for name, r in ratios.items()}


def main() -> None:
    """Print the ratios and the exponent of growth."""
    rng = np.random.default_rng(0)
    with one_blas_thread():
        for dtype in (np.float32, np.float64):
            W = rng.normal(size=(1024, 1024)).astype(dtype)
            spec = rq.QuantSpec(4, granularity=rq.PerChannel(0))
            cases = {f"{f.__name__}, 80 points": partial(f, W, 4, 80) for f in (grid, grid_in_place)}
            for name, ratio in paired(partial(rq.solve_scale, W, spec=spec), cases).items():
                print(f"1,024 channels of 1,024 {dtype.__name__}, 4 bits, exact: {ratio:.2f} x {name}")
            x = W.reshape(1, -1)[:, :1_000_000]
            for bits, tol in ((4, 0.0), (8, 1e-4), (8, 0.0)):
                cases = {f"{f.__name__}, 100 points": partial(f, x, bits, 100) for f in (grid, grid_in_place)}
                solve = partial(rq.solve_scale, x, spec=rq.QuantSpec(bits), tol=tol)
                for name, ratio in paired(solve, cases).items():
                    print(f"1,000,000 {dtype.__name__}, {bits} bits, tol {tol:g}: {ratio:.2f} x {name}")
        sizes = np.array([10**3, 10**4, 10**5, 10**6, 10**7])
        for bits in (4, 8):
            seconds = []
            for n in sizes:
                x, times = rng.normal(size=n).astype(np.float32), []
                for _ in range(5 if n < 10**7 else 2):
                    start = time.perf_counter()
                    rq.solve_scale(x, spec=rq.QuantSpec(bits), tol=1e-4 if bits == 8 else 0.0)
                    times.append(time.perf_counter() - start)
                seconds.append(np.median(times))
            slope = np.polyfit(np.log(sizes * np.log(sizes))[2:], np.log(seconds)[2:], 1)[0]
            shown = ", ".join(f"{n:.0e}: {1e3 * t:.1f} ms" for n, t in zip(sizes, seconds, strict=True))
            print(f"growth at {bits} bits: {shown}; time ~ (n log n)^{slope:.2f} from 1e5 on")


if __name__ == "__main__":
    main()
