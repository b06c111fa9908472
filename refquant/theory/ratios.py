"""Noise-to-signal ratios of products: the sum rule, the exact forms, and what growth with depth they say.

Letters, of a factor x and what quantization makes of it, x^: NSR = E(x^ - x)^2 / E x^2, and beta with
E x x^ = (1 + beta) E x^2, so beta = E x (x^ - x) / E x^2.

Take a product of independent factors x_1 ... x_n.  As E x^^2 = (1 + 2 beta + NSR) E x^2, and expectations of products
are products of expectations, the product's own ratio is exactly

    NSR = prod (1 + 2 beta_i + NSR_i) - 2 prod (1 + beta_i) + 1.

With zero-mean noise independent of the signal beta = 0, and 1 + NSR = prod (1 + NSR_i).  With scales of least squared
error the error is orthogonal to x^, so beta = -NSR, and 1 - NSR = prod (1 - NSR_i).  To first order in all cases
NSR = sum NSR_i up to the correlations that beta stands for: the harmonic rule 1 / SQNR = sum 1 / SQNR_i, by which n
factors alike lose 10 log10 n dB (Lin, Talathi and Annapureddy 2016, Fixed point quantization of deep convolutional
networks).  For a chain of layers it is a model: a layer is a sum of products, whose terms would have to be
uncorrelated.

Proofs: proofs/07_accumulation.py.
"""

from collections.abc import Iterable
from math import log10, prod
from typing import NamedTuple

import numpy as np

from ..net.op import Array

__all__ = ["Ratio", "decibels", "harmonic", "product", "ratio_of", "relative"]


class Ratio(NamedTuple):
    """NSR and beta of a quantized factor; exact in the mean over its elements."""

    nsr: float
    beta: float = 0.0


def ratio_of(x: Array, quantized: Array) -> Ratio:
    """The ratio of a tensor over all its elements; NSR 0 where x is 0 and kept, infinite where 0 is changed.

    >>> ratio_of(np.array([3.0, 4.0]), np.array([4.0, 4.0]))
    Ratio(nsr=0.04, beta=0.12)
    """
    d, signal = quantized - x, float(np.sum(x * x))
    return Ratio(relative(float(np.sum(d * d)), signal), float(np.sum(x * d)) / signal if signal else 0.0)


def relative(noise: float, signal: float) -> float:
    """The noise-to-signal ratio of two powers: without a signal infinite, and 0 without noise.

    >>> relative(1.0, 4.0), relative(1.0, 0.0), relative(0.0, 0.0)
    (0.25, inf, 0.0)
    """
    return noise / signal if signal else float("inf") if noise else 0.0


def harmonic(ratios: Iterable[Ratio]) -> float:
    """The sum of NSRs: the harmonic rule of SQNRs, to first order, correlations left out.

    >>> harmonic([Ratio(0.01), Ratio(0.02)])
    0.03
    """
    return sum(ratio.nsr for ratio in ratios)


def product(ratios: Iterable[Ratio]) -> float:
    """The NSR of the product of independent factors with these ratios, exactly.

    >>> round(product([Ratio(0.01), Ratio(0.02)]), 12)
    0.0302
    """
    known = list(ratios)
    return prod(1 + 2 * r.beta + r.nsr for r in known) - 2 * prod(1 + r.beta for r in known) + 1


def decibels(nsr: float) -> float:
    """SQNR = -10 log10 NSR; infinite for no noise, minus infinity for no signal, NaN for NaN.

    >>> decibels(0.01), decibels(0.0), decibels(float("inf"))
    (20.0, inf, -inf)
    """
    return float("inf") if nsr <= 0 else -10 * log10(nsr)
