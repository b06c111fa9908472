"""Restated rules against the programs that they come from, where these install."""

import numpy as np
import pytest
import torch

import refquant as rq
from refquant.solve.heuristics import rule_scale


def rows() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    made = [rng.normal(size=n) for n in (9, 64, 500)] + [rng.laplace(size=n) for n in (30, 300)]
    return [x.astype(np.float32).astype(np.float64) for x in made]


@pytest.mark.guarantee(
    "Restated rules for scales: PyTorch's HistogramObserver and Brevitas' MSE", kind="second opinion"
)
def test_histogram_observer() -> None:
    """At 8 bits: it sums errors with 2^8 levels whatever the range of codes."""
    from torch.ao.quantization.observer import HistogramObserver

    for x in rows():
        observer = HistogramObserver(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
        observer(torch.tensor(x, dtype=torch.float32))
        scale, _ = observer.calculate_qparams()
        assert rule_scale(x, "torch-histogram", spec=rq.QuantSpec(8)) == pytest.approx(float(scale), rel=2e-3)


@pytest.mark.parametrize("method", ["grid", "fibonacci"])
def test_brevitas(method: str) -> None:
    from brevitas.core.stats import stats_op

    search = {"grid": stats_op.mse_grid_search, "fibonacci": stats_op.mse_fib_search}[method]
    for x in rows():
        t = torch.tensor(x)

        def loss(threshold: torch.Tensor, t: torch.Tensor = t) -> torch.Tensor:
            s = threshold / 128
            return torch.sum((torch.clamp(torch.round(t / s), -128, 127) * s - t) ** 2)

        top = t.abs().max()
        threshold, _ = search(xl=top / 20, xr=top, loss_fn=loss, num_iter=20)
        ours = rule_scale(x, f"brevitas-{method}", spec=rq.QuantSpec(8))
        assert ours == pytest.approx(float(threshold) / 128, rel=1e-6)
