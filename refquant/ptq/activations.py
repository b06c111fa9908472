"""Activation quantizers of least squared error: certified scales and zero points in place of observed ranges.

With few bits, a range that holds every value wastes codes on a few of them.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..net.plan import ActivationQuantizer
from ..solve.scale import solve_scale
from .task import Task

__all__ = ["SAMPLE", "with_least_error"]

SAMPLE = 2**14
"""About how many values of a tensor a scale is found from."""

MOST_BITS = 8
"""Of activations whose scales are searched; those of more stay as observed."""


def sample(x: NDArray[Any]) -> NDArray[Any]:
    """About `SAMPLE` of the values, at a stride that meets every place of an image.

    >>> len(sample(np.zeros((2, 5)))), len(sample(np.zeros((512, 784))))
    (10, 17453)
    """
    stride, each = max(1, x.size // SAMPLE), max(1, x.size // len(x))
    while math.gcd(stride, each) > 1:
        stride -= 1
    return x.ravel()[::stride]


def with_least_error(task: Task) -> Task:
    """The task with each activation's scale and zero point of least squared error on the float network's tensors.

    Those of more than `MOST_BITS` bits stay as observed: there, what a range leaves out costs more than it saves.
    """
    found = dict(task.activations)
    for tensor, q in task.activations.items():
        if q.spec.bits > MOST_BITS:
            continue
        spec = replace(q.spec, quotient="exact", overflow="saturate", zero_point_order="after")
        best = solve_scale(sample(task.trace[tensor]), spec=spec, zero_point=None, tol=1e-6)
        found[tensor] = ActivationQuantizer(q.spec, best.value.astype(np.float32), np.asarray(best.zero_point))
    return task.changed(activations=found)
