"""PyTorch's optimizers in float64, on the same gradients, against ours: equal up to what rounding can do.

Letters: u the unit roundoff.  20 steps at rate 0.1 from |w| <= 4, with gradients of magnitudes from 1/4 to 1; w stays
below 40.

SGD, momentum 0.9: |g + decay w| <= 2, so |m| <= 20.  A step adds at most 3 (20 u) to the error of m, of which 0.9
remains: 600 u in all, and 4 u (40 decay) / (1 - 0.9) from w's own.  w takes a tenth of that error and 5 (4 u) a step,
and 40 u of its own: below 200 u a step, 4,000 u in 20.

Adam: m and v are averages: v, of squares, errs by 3 t u relatively, m by 3 t u of at most 1.  1 - beta2^t is at least
1e-3 and errs by 4 u, so the quotient by 4,000 u relatively; m^ / sqrt(v^) is at most sqrt(20), by Cauchy and Schwarz
for averages with such weights.  Where v^ is above 1e-2 (asserted) an error of m^ of 3 t u 10 counts 10 times.  With a
rate of 0.1: below 0.1 (4.5 * 4,100 u + 10 * 600 u) + 40 u < 2,500 u a step, 50,000 u in 20.
"""

from typing import Any

import numpy as np
import pytest
import torch

from refquant.net.optimize import Optimizer, adam, decayed, sgd

UNIT, STEPS, RATE, DECAY = 2.0**-53, 20, 0.1, 0.01


def gradients() -> Any:
    rng = np.random.default_rng(0)
    return rng.choice([-1, 1], (STEPS, 50)) * rng.uniform(0.25, 1, (STEPS, 50))


def ours(rule: Optimizer) -> Any:
    params = {"w": np.linspace(-4, 4, 50)}
    state = rule.init(params)
    for t, g in enumerate(gradients(), 1):
        params, state = rule.step(params, decayed(params, {"w": g}, DECAY), state, RATE)
        assert "v" not in state.averages or state.averages["v"]["w"].min() / (1 - 0.999**t) > 1e-2
        assert np.abs(params["w"]).max() < 40
    return params["w"]


def theirs(make: Any, **options: Any) -> Any:
    w = torch.from_numpy(np.linspace(-4, 4, 50)).requires_grad_()
    optimizer = make([w], lr=RATE, weight_decay=DECAY, **options)
    for g in gradients():
        w.grad = torch.from_numpy(g)
        optimizer.step()
    return w.detach().numpy()


@pytest.mark.guarantee("PyTorch's SGD with momentum, Nesterov's too, and Adam, to rounding", kind="second opinion")
@pytest.mark.parametrize(
    ("rule", "make", "options", "bound"),
    [
        (sgd(0.9), torch.optim.SGD, {"momentum": 0.9}, 4_000),
        (sgd(0.9, nesterov=True), torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, 4_000),
        (adam(), torch.optim.Adam, {}, 50_000),
    ],
    ids=["momentum", "nesterov", "adam"],
)
def test_optimizers(rule: Optimizer, make: Any, options: Any, bound: int) -> None:
    assert np.abs(ours(rule) - theirs(make, **options)).max() <= 2 * bound * UNIT
    if make is torch.optim.SGD:  # another momentum is noticed; of Adam, another average
        assert np.abs(ours(sgd(0.9 + 1e-9, "nesterov" in options)) - theirs(make, **options)).max() > 2 * bound * UNIT
    else:
        assert np.abs(ours(adam(0.9 + 1e-9)) - theirs(make)).max() > 2 * bound * UNIT
