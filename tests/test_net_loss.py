"""Losses against their definitions; gradients and curvatures against central differences within derived bounds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax, rel_entr, softmax

from refquant.errors import ArgumentError
from refquant.net.loss import Loss, cross_entropy, divergence, mean_power, squared_error

Reals = NDArray[np.float64]

UNIT = 2.0**-53
H = 2.0**-14
"""The step of differences along |v| <= 1, where |z| <= 4 and losses are below 16."""

THIRD, FOURTH = 8.0, 64.0
"""Bounds of the derivatives of log sum exp along v: its cumulants under p.  The third is a mean of cubes of deviations,
at most 2 each; the fourth is a mean of fourth powers, at most 16, less 3 squares of a variance, at most 1: below 64."""

ROUNDING = 2 * 64 * UNIT * 16 / (2 * H)
"""Of a difference of two numbers below 16, each within 64 roundings: its exponents, at most 8, and sums of 12 terms."""

Z = np.random.default_rng(0).uniform(-4, 4, (3, 4))
LABELS = np.array([3, 0, 2])


def check_loss(loss: Callable[[Reals], Loss], z: Reals, gradient_error: float, curvature_error: float) -> None:
    """Nothing is returned; asserts that gradient and curvature are differences, up to these, along random tangents."""
    rng, here = np.random.default_rng(1), loss(z)
    assert here.cotangent.shape == z.shape
    for _ in range(5):
        v = rng.uniform(-1, 1, z.shape)
        ends = [loss(z + way * H * v) for way in (1, -1)]
        slope = (ends[0].value - ends[1].value) / (2 * H)
        assert abs((here.cotangent * v).sum() - slope) <= gradient_error
        turn = (ends[0].cotangent - ends[1].cotangent) / (2 * H)
        assert np.abs(here.curvature(v) - turn).max() <= curvature_error


CLASSES: dict[str, Callable[[Reals], Loss]] = {
    "cross entropy": lambda z: cross_entropy(z, LABELS),
    "divergence": lambda z: divergence(z, Z[::-1]),
}
ERRORS = (H**2 / 6 * THIRD + ROUNDING, H**2 / 6 * FOURTH + ROUNDING)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.guarantee("Gradients and curvatures of losses of classes are central differences", kind="sampled")
def test_losses_of_classes(kind: str) -> None:
    check_loss(CLASSES[kind], Z, *ERRORS)


@dataclass
class Wrong:
    """A loss whose gradient or curvature is off by a factor."""

    loss: Callable[[Reals], Loss]
    gradient: float = 1.0
    curvature: float = 1.0

    def __call__(self, z: Reals) -> Loss:
        good = self.loss(z)
        return Loss(good.value, self.gradient * good.cotangent, lambda v: self.curvature * good.curvature(v))


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("fault", [{"gradient": 2.001 / 2}, {"curvature": 2.001 / 2}])
def test_planted_factors_are_caught(kind: str, fault: dict[str, float]) -> None:
    with pytest.raises(AssertionError):
        check_loss(Wrong(CLASSES[kind], **fault), Z, *ERRORS)


def test_values_of_losses_of_classes() -> None:
    each = -log_softmax(Z, axis=1)[np.arange(3), LABELS]
    assert abs(cross_entropy(Z, LABELS).value - each.mean()) <= 64 * UNIT * 16
    t, p = softmax(Z[::-1], axis=1), softmax(Z, axis=1)
    assert abs(divergence(Z, Z[::-1]).value - rel_entr(t, p).sum(axis=1).mean()) <= 64 * UNIT * 16
    assert abs(divergence(Z, Z + np.array([[1.0], [2.0], [-3.0]])).value) <= 64 * UNIT * 16
    assert np.abs(divergence(Z, Z).cotangent).max() == 0


def test_large_logits_do_not_overflow() -> None:
    z = np.array([[1e300, -1e300, 0.0]])
    assert cross_entropy(z, [0]).value == 0
    assert cross_entropy(z, [1]).value == 2e300
    assert cross_entropy(z, [1]).cotangent.tolist() == [[1, -1, 0]]
    assert divergence(z, z).value == 0


def test_losses_of_images_of_classes() -> None:
    """Softmax is over all but the images."""
    z, t = Z.reshape(3, 2, 2), Z[::-1].reshape(3, 2, 2)
    flat, image = divergence(Z, Z[::-1]), divergence(z, t)
    assert flat.value == image.value
    assert np.array_equal(flat.cotangent, image.cotangent.reshape(3, 4))
    assert np.array_equal(flat.curvature(Z), image.curvature(z).reshape(3, 4))


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("weights", [None, [[1.0, 2.0, 0.0, 4.0]]])
def test_powers_by_hand(power: float, weights: Any) -> None:
    """Dyadic numbers, 16 of them: exact."""
    e = np.array([[-2.0, 0.0, 0.5, 3.0]] * 4)
    t, w = np.arange(16.0).reshape(4, 4), np.ones(4) if weights is None else np.array(weights[0])
    loss, v = mean_power(t + e, t, power, weights), np.full((4, 4), 2.0)
    assert loss.value == (w * np.abs(e) ** power).sum() / 16
    assert np.array_equal(loss.cotangent, w * power * np.abs(e) ** (power - 1) * np.sign(e) / 16)
    second = power * (power - 1) * np.abs(e) ** (power - 2) if power > 1 else 0 * e
    assert np.array_equal(loss.curvature(v), w * second * v / 16)
    if power == 2:
        same = squared_error(t + e, t, weights)
        assert (same.value, same.cotangent.tolist()) == (loss.value, loss.cotangent.tolist())


def test_float32_stays_float32() -> None:
    z = Z.astype(np.float32)
    for loss in (cross_entropy(z, LABELS), divergence(z, Z), mean_power(z, Z, 2.4, np.ones(4)), squared_error(z, Z)):
        assert type(loss.value) is float
        assert loss.cotangent.dtype == np.float32
        assert loss.curvature(z).dtype == np.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: squared_error(Z, Z[:2]), "one shape"),
        (lambda: squared_error(Z[:0], Z[:0]), "not empty"),
        (lambda: mean_power(Z, Z, 0.5), "power=0.5"),
        (lambda: mean_power(Z, Z, 1.5).curvature(Z), "power=1.5"),
        (lambda: cross_entropy(Z, [0, 1, 4]), "0..3"),
        (lambda: cross_entropy(Z, [0, 1, -1]), "0..3"),
        (lambda: cross_entropy(Z, [0, 1]), "3 rows"),
        (lambda: cross_entropy(Z, [0.0, 1.0, 2.0]), "float64"),
        (lambda: cross_entropy(Z[:0], np.zeros(0, int)), "0 rows"),
        (lambda: cross_entropy(Z.reshape(3, 2, 2), LABELS), "3 rows"),
        (lambda: divergence(Z, Z[:, :2]), "one shape"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()
