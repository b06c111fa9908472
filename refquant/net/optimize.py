"""Optimizers as pure functions on dicts of arrays, and schedules of their learning rate.

Letters: w params, g gradients, eta the learning rate; all updates are elementwise.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from ..errors import ArgumentError, complaint
from .op import Array

__all__ = ["SCHEDULES", "Optimizer", "State", "adam", "constant", "cosine", "decayed", "linear", "sgd"]

Values: TypeAlias = Mapping[str, Array]
Rate: TypeAlias = float | Mapping[str, float]
"""The learning rate: one for all, or one for each param by name."""


class State(NamedTuple):
    """What an optimizer remembers: the steps done, and averages of gradients, by rule and name of param."""

    steps: int
    averages: Mapping[str, Values]


class Optimizer(NamedTuple):
    """init: from params to the state before the first step.  step: (params, gradients, state, rate) -> both anew.

    Params without a gradient stay; none is changed in place.
    """

    init: Callable[[Values], State]
    step: Callable[[Values, Values, State, Rate], tuple[dict[str, Array], State]]


def _rate(rate: Rate, name: str) -> float:
    return rate[name] if isinstance(rate, Mapping) else rate


def sgd(momentum: float = 0.0, nesterov: bool = False) -> Optimizer:
    """Gradient descent with momentum mu: m <- mu m + g, w <- w - eta m; Nesterov's goes along mu m + g once more.

    m starts at 0.  Source: Sutskever et al. 2013, in the form of PyTorch's SGD, whose m does not contain eta.

    >>> rule = sgd(momentum=0.5)
    >>> w, g = {"w": np.array([1.0])}, {"w": np.array([2.0])}
    >>> w, state = rule.step(w, g, rule.init(w), 0.25)
    >>> w, state = rule.step(w, g, state, 0.25)
    >>> w["w"].tolist(), state.averages["m"]["w"].tolist()
    ([-0.25], [3.0])
    """

    def init(params: Values) -> State:
        return State(0, {"m": {name: np.zeros_like(w) for name, w in params.items()}})

    def step(params: Values, gradients: Values, state: State, rate: Rate) -> tuple[dict[str, Array], State]:
        m = {**state.averages["m"], **{name: momentum * state.averages["m"][name] + g for name, g in gradients.items()}}
        way = {name: momentum * m[name] + g if nesterov else m[name] for name, g in gradients.items()}
        moved = {name: params[name] - _rate(rate, name) * d for name, d in way.items()}
        return {**params, **moved}, State(state.steps + 1, {"m": m})

    return Optimizer(init, step)


def adam(beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> Optimizer:
    """Adam: m and v average g and g^2; w <- w - eta m^ / (sqrt(v^) + epsilon), with m^ = m / (1 - beta1^t), so v^.

    Raises ArgumentError for a beta outside [0, 1), where averages mean nothing, and for an epsilon below 0.

    Source: Kingma and Ba 2015, algorithm 1.

    >>> rule = adam()
    >>> w = {"w": np.array([1.0])}
    >>> w, state = rule.step(w, {"w": np.array([-7.0])}, rule.init(w), 0.25)
    >>> w["w"].round(6).tolist()  # the first step is eta, against the gradient's sign
    [1.25]
    """

    if not (0 <= beta1 < 1 and 0 <= beta2 < 1 and epsilon >= 0):
        got = f"beta1={beta1}, beta2={beta2}, epsilon={epsilon}"
        raise ArgumentError(complaint(got, "betas of at least 0 and below 1, an epsilon of at least 0", "adam"))

    def init(params: Values) -> State:
        return State(0, {rule: {name: np.zeros_like(w) for name, w in params.items()} for rule in ("m", "v")})

    def step(params: Values, gradients: Values, state: State, rate: Rate) -> tuple[dict[str, Array], State]:
        t, (m, v) = state.steps + 1, (dict(state.averages[rule]) for rule in ("m", "v"))
        moved = dict(params)
        for name, g in gradients.items():
            m[name] = beta1 * m[name] + (1 - beta1) * g
            v[name] = beta2 * v[name] + (1 - beta2) * g * g
            size = np.sqrt(v[name] / (1 - beta2**t)) + epsilon
            moved[name] = params[name] - _rate(rate, name) * (m[name] / (1 - beta1**t)) / size
        return moved, State(t, {"m": m, "v": v})

    return Optimizer(init, step)


def decayed(params: Values, gradients: Values, decay: float) -> dict[str, Array]:
    """The gradients of the loss plus decay / 2 times the sum of squares of these params: g + decay w.

    >>> decayed({"w": np.array([2.0])}, {"w": np.array([1.0])}, 0.5)["w"].tolist()
    [2.0]
    """
    return {name: g + decay * params[name] for name, g in gradients.items()}


# ---- schedules ------------------------------------------------------------------------------------------------


def constant(step: int, total: int) -> float:
    """1: the factor of the learning rate at a step, 0..total.

    >>> constant(3, 4)
    1.0
    """
    return 1.0


def linear(step: int, total: int) -> float:
    """1 - step / total: from 1 at step 0 to 0 at the last; 1 where there is none.

    >>> linear(3, 4)
    0.25
    """
    return 1 - step / max(total, 1)


def cosine(step: int, total: int) -> float:
    """(1 + cos(pi step / total)) / 2: from 1 at step 0 to 0 at the last; 1 where there is none.

    Source: Loshchilov and Hutter 2017 (warm restarts, here without a restart).

    >>> [round(cosine(step, 2), 12) for step in range(3)]
    [1.0, 0.5, 0.0]
    """
    return (1 + math.cos(math.pi * step / max(total, 1))) / 2


SCHEDULES: dict[str, Callable[[int, int], float]] = {"constant": constant, "linear": linear, "cosine": cosine}
"""name -> the factor of the learning rate at a step of so many."""
