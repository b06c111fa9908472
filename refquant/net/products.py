"""Sums of products of codes by the names of clause N1: exact, in saturating pairs, in 4-bit digits.

Letters: X the codes of a layer's input, W those of its weights, zero points not taken off: integers held as
float64, as is their sum, which is exact while K max|X| max|W| < 2^53 (K products a sum).

Digits: an 8-bit code is 16 h + l.  `two-terms` slices it: l is unsigned, 0..15, and h as signed as the code is,
which is what the seed's floor quantizer does to a code with step 16 and then with step 1.  `signed-terms` has only
digits of -8..7: two of them reach -136..119.  The input's codes are moved onto that range (int8 by 8, bytes by 136),
which the sums of the weights make good; weights of 120 and more need a third digit, 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..quant.spec import QuantSpec
from .op import Attrs, Op
from .ops_linear import patches

__all__ = ["DIGIT_BITS", "PRODUCTS", "Operand", "digits", "per_output", "terms_needed"]

Reals = NDArray[np.float64]

DIGIT_BITS = 4


class Operand(NamedTuple):
    """Codes as float64, and the grid they lie on."""

    codes: Reals
    spec: QuantSpec


def per_output(v: NDArray[Any], axes: int) -> NDArray[Any]:
    """One number an output channel, shape (O,), or one for all, (): broadcastable against (N, O, ...) of so many axes.

    >>> per_output(np.ones(3), 4).shape
    (3, 1, 1)
    """
    return v.reshape(*v.shape, *(1,) * (axes - 2)) if v.shape else v


def _row_sums(W: Reals) -> Reals:
    return np.asarray(W.reshape(len(W), -1).sum(axis=1))


# ---- digits ---------------------------------------------------------------------------------------------------


def digits(codes: Reals, spec: QuantSpec, *, signed: bool) -> list[Reals]:
    """The 4-bit digits of codes on a grid, lowest first: codes = sum of 16^i digit_i.

    signed=False: the top digit is as signed as the grid, the others 0..15; one for each 4 bits of the grid.
    signed=True: every digit is in -8..7, and there are as many as the codes at hand need, at least one.

    >>> [d.tolist() for d in digits(np.array([-1.0, 119.0, 120.0]), QuantSpec(8), signed=False)]
    [[15.0, 7.0, 8.0], [-1.0, 7.0, 7.0]]
    >>> [d.tolist() for d in digits(np.array([-1.0, 119.0, 120.0]), QuantSpec(8), signed=True)]
    [[-1.0, 7.0, -8.0], [0.0, 7.0, -8.0], [0.0, 0.0, 1.0]]
    """
    found: list[Reals] = []
    rest, base = codes, 1 << DIGIT_BITS
    lowest = -base // 2 if signed else 0
    while (
        (rest.min(initial=0) < -base // 2 or rest.max(initial=0) >= base // 2)
        if signed
        else (len(found) < -(-spec.bits // DIGIT_BITS) - 1)
    ):
        low = np.mod(rest - lowest, base) + lowest
        found.append(low)
        rest = (rest - low) / base
    return [*found, rest]


def _moved(spec: QuantSpec) -> int:
    """How far codes are moved down so that their whole grid lies in what one signed digit for each 4 bits reaches."""
    count, base = -(-spec.bits // DIGIT_BITS), 1 << DIGIT_BITS
    reach: int = (base**count - 1) // (base - 1)
    return spec.qmin + base // 2 * reach


def terms_needed(codes: Reals, spec: QuantSpec, product: str, *, moved: bool = False) -> NDArray[np.int64]:
    """How many digits each code needs by a product's convention; `exact` and the pairs count as one.

    moved: as codes of a layer's input, which `signed-terms` moves down first, so that two digits hold every 8-bit one.

    >>> codes = np.array([0.0, 119.0, 120.0])
    >>> terms_needed(codes, QuantSpec(8), "signed-terms").tolist()
    [1, 2, 3]
    >>> terms_needed(codes, QuantSpec(8), "signed-terms", moved=True).tolist()
    [1, 2, 2]
    """
    if product == "two-terms":
        return np.full(codes.shape, -(-spec.bits // DIGIT_BITS))
    if product != "signed-terms":
        return np.ones(codes.shape, np.int64)
    split = digits(codes - _moved(spec) if moved else codes, spec, signed=True)
    return np.asarray(np.max([np.where(d != 0, i + 1, 1) for i, d in enumerate(split)], axis=0), np.int64)


# ---- the products ---------------------------------------------------------------------------------------------


def _exact(op: Op, attrs: Attrs, w: Operand, x: Operand) -> Reals:
    return np.asarray(op.forward(attrs, {"weight": w.codes}, [x.codes]))


def _of_digits(op: Op, attrs: Attrs, w: Operand, x: Operand, *, signed: bool) -> Reals:
    """The sum over pairs of digits of 16^(i+j) times their product: shifts and adds around low-bit products."""
    moved = _moved(x.spec) if signed else 0
    W, X = w.codes, x.codes - moved
    total: Any = 0.0
    for i, U in enumerate(digits(W, w.spec, signed=signed)):
        for j, V in enumerate(digits(X, x.spec, signed=signed)):
            if U.any() and V.any():
                total = total + 2.0 ** (DIGIT_BITS * (i + j)) * _exact(
                    op, attrs, Operand(U, w.spec), Operand(V, x.spec)
                )
    if not np.ndim(total):
        total = _exact(op, attrs, Operand(0 * W, w.spec), x)
    return np.asarray(total + moved * per_output(_row_sums(W), total.ndim))


def _two_terms(op: Op, attrs: Attrs, w: Operand, x: Operand) -> Reals:
    return _of_digits(op, attrs, w, x, signed=False)


def _signed_terms(op: Op, attrs: Attrs, w: Operand, x: Operand) -> Reals:
    return _of_digits(op, attrs, w, x, signed=True)


def _int16_pairs(op: Op, attrs: Attrs, w: Operand, x: Operand) -> Reals:
    """Products k and k + 1 of a sum are added and saturated to int16, then the pairs are added exactly.

    K runs as in `patches`.  The exact sum, and what saturation takes away from the pairs that it can touch.
    """
    P = patches(attrs, x.codes)
    N, G, K = P.shape[:3]
    W = w.codes.reshape(G, -1, K)
    total = W @ P
    largest = np.abs(P).max(initial=0.0)
    for k in range(0, K - 1, 2):
        U, V = W[:, :, k], W[:, :, k + 1]
        rows = np.flatnonzero(((np.abs(U) + np.abs(V)) * largest > 2**15 - 1).any(axis=0))
        pair = U[:, rows, None] * P[:, :, None, k] + V[:, rows, None] * P[:, :, None, k + 1]
        total[:, :, rows] += np.clip(pair, -(2.0**15), 2.0**15 - 1) - pair
    shape = np.shape(_exact(op, attrs, Operand(0 * w.codes, w.spec), Operand(x.codes[:1], x.spec)))
    return np.asarray(total.reshape(N, *shape[1:]))


PRODUCTS: dict[str, Callable[[Op, Attrs, Operand, Operand], Reals]] = {
    "exact": _exact,
    "int16-pairs": _int16_pairs,
    "two-terms": _two_terms,
    "signed-terms": _signed_terms,
}
"""name -> sums of products of raw codes for a Conv (its input padded) or a Gemm; shape of the op's output."""
