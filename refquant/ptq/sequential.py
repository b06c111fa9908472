"""Weights rounded one input after another, the error of each spread over those still free: GPTQ, GPFQ and Qronos.

Letters: w a row of weights, X what the layer reads in the float network and X^ in the quantized one (patches as rows),
q the row's quantized weights (values, not codes), H = X^'X^, M = X^'X, t the input whose turn it is, c its centre: the
real value that would be best there.

All want |X w - X^ q|^2 small, from the moments H and M alone.  They differ in c:

    GPTQ    the target is X^ w; weights still free go to the least-squares solution given those fixed.
    GPFQ    c is best for what the inputs so far leave: |sum over j <= t of w_j X_j - q_j X^_j|; free weights stay.
    Qronos  the target is X w; the first code is the best one while the free weights are w, then as GPTQ.
    descent Qronos, then rounds of (each code anew, given all others; then scales by least squares): the error of a
            row never grows.  A mean error goes to the bias, so moments are about the mean.

With lambda added to the diagonals of H and M, all this minimizes |X w - X^ q|^2 + lambda |w - q|^2.  As a layer has
n-term sums for weights, the value at a centre is the nearest sum, block of terms by block of terms; with directed
rounding, term by term.

Sources: Frantar et al. 2022 (GPTQ, arXiv 2210.17323); Lybrand and Saab 2021 (GPFQ, arXiv 2010.15703); Zhang et al.
2025 (Qronos, arXiv 2505.11695).  GPTQ's steps are Babai's nearest plane (`solve.rounding_oracle`).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arith.rounding import round_array
from ..errors import one_of
from ..net.graph import Node
from ..net.ops_linear import patches
from ..net.plan import QuantPlan
from ..quant.granularity import PerChannel, PerTensor
from ..quant.multiterm import MultiTerm
from ..quant.spec import QuantSpec
from .activations import with_least_error
from .blocks import blocks_of
from .observe import CHUNK
from .task import Task, walk

__all__ = [
    "DAMPING",
    "FORMS",
    "LayerMoments",
    "corrected_target",
    "layer_moments",
    "row_errors",
    "sequential",
    "sequential_layer",
]

Array = NDArray[np.float64]

DAMPING = 0.01
"""lambda, in means of the diagonal of H (GPTQ's)."""

SHARES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Dampings that `descent` chooses from."""

ROUNDS = 4
"""Rounds of `descent`."""


# ---- what a layer reads ---------------------------------------------------------------------------------------


class LayerMoments(NamedTuple):
    """H and M of a layer, means over patches, shape (groups, K, K); the means of X and X^, shape (groups, K)."""

    H: Array
    M: Array
    mean: Array
    mean_hat: Array

    def centred(self) -> "LayerMoments":
        """The moments about the means: what is left to the weights once the bias takes the mean error."""
        H = self.H - self.mean_hat[:, :, None] * self.mean_hat[:, None, :]
        M = self.M - self.mean_hat[:, :, None] * self.mean[:, None, :]
        return self._replace(H=H, M=M)

    def damped(self, share: float = DAMPING) -> "LayerMoments":
        """The moments with share times the mean of H's diagonal added to both diagonals (1 where H is 0).

        At least 8 float32 epsilons of the trace about 0, since X^ is float32 and centring may leave rounding alone.
        """
        K = self.H.shape[-1]
        size = np.trace(self.H, axis1=1, axis2=2) / K
        lost = 8 * np.finfo(np.float32).eps * (np.abs(size) * K + np.sum(self.mean_hat**2, axis=1))
        least = np.maximum(share * size, lost)
        ridge = np.where(least > 0, least, 1.0)[:, None, None] * np.eye(K)
        return self._replace(H=self.H + ridge, M=self.M + ridge)


def layer_moments(node: Node, X: NDArray[Any], X_hat: NDArray[Any]) -> LayerMoments:
    """The moments of a Conv's or Gemm's inputs over all images and positions, padding included.

    >>> from ..net.graph import Node
    >>> node = Node("y", "Gemm", ("x",), {"in_features": 1, "out_features": 1}, {"weight": "w"})
    >>> layer_moments(node, np.array([[1.0], [3.0]]), np.array([[1.0], [2.0]])).M.tolist()
    [[[3.5]]]
    """
    H: Any = 0.0
    M: Any = 0.0
    mean: Any = 0.0
    mean_hat: Any = 0.0
    total = 0
    for start in range(0, len(X), CHUNK):
        P, P_hat = (_columns(patches(node.attrs, x[start : start + CHUNK])) for x in (X, X_hat))
        H = H + (P_hat @ P_hat.transpose(0, 2, 1)).astype(np.float64)
        M = M + (P_hat @ P.transpose(0, 2, 1)).astype(np.float64)
        mean, mean_hat = (m + p.sum(axis=2, dtype=np.float64) for m, p in ((mean, P), (mean_hat, P_hat)))
        total += P.shape[2]
    return LayerMoments(H / total, M / total, mean / total, mean_hat / total)


def _columns(P: NDArray[Any]) -> NDArray[Any]:
    """Patches of shape (N, G, K, L) as (G, K, N L)."""
    return P.transpose(1, 2, 0, 3).reshape(P.shape[1], P.shape[2], -1)


# ---- codes at a centre ----------------------------------------------------------------------------------------


class _Coder:
    """Turns centres of one input, shape (rows,), into the nearest values that the sums allow, and keeps the codes."""

    def __init__(
        self,
        codes: NDArray[Any],
        alpha: Array,
        counts: NDArray[np.int64],
        specs: tuple[QuantSpec, ...],
        scale_rows: str = "",
    ) -> None:
        """codes, alpha: shape (T, rows, K), kept up to date; counts: (rows, K).

        scale_rows: "each" if each row has its scales, "one" if all rows share them, else "".
        """
        self.codes, self.alpha, self.counts, self.specs, self.scale_rows = codes, alpha, counts, specs, scale_rows
        self.blocks = blocks_of(specs) if specs[0].rounding.startswith("half_") else []

    def __call__(self, t: int, centre: Array, held: Array | None = None) -> Array:
        """held: values that stay, with their codes, where they are nearer than what a search in blocks finds."""
        alpha, counts, before = self.alpha[:, :, t], self.counts[:, t], self.codes[:, :, t].copy()
        value = np.zeros_like(centre)
        for block in self.blocks:
            terms = slice(block.first, block.end)
            sums = block.grid @ alpha[terms]  # (sums, rows)
            distance = np.abs(sums - (centre - value))
            in_use = np.maximum(counts - block.first, 0)  # of the block's terms; of none, 0 is the one sum
            best = np.where(block.reach[:, None] <= in_use, distance, np.inf).argmin(axis=0)
            self.codes[terms, :, t] = block.grid[best].T
            value += sums[best, np.arange(len(centre))]
        left = centre  # of directed rounding, as clause M1 has it
        for k, spec in enumerate(() if self.blocks else self.specs):
            q = np.clip(round_array(left / alpha[k], spec.rounding), spec.qmin, spec.qmax) * (k < counts)
            self.codes[k, :, t], left = q, left - q * alpha[k]
            value += q * alpha[k]
        if held is None or len(self.blocks) < 2:
            return value
        stay = np.abs(held - centre) < np.abs(value - centre)
        self.codes[:, :, t] = np.where(stay, before, self.codes[:, :, t])
        return np.where(stay, held, value)


# ---- the forms ------------------------------------------------------------------------------------------------

Form = Callable[[Array, Array, Array, _Coder, NDArray[np.int64]], Array]
"""(W, H, M, code, order) -> values: W of shape (rows, K), order the inputs, first one first."""


def corrected_target(W: Array, H: Array, M: Array) -> Array:
    """The real weights v of least |X w - X^ v|^2: H v = M w; then |X w - X^ q|^2 = |X^ (v - q)|^2 + what v leaves.

    >>> corrected_target(np.array([[1.0]]), np.array([[4.0]]), np.array([[2.0]])).tolist()
    [[0.5]]
    """
    return np.asarray(np.linalg.solve(H, M @ W.T).T)


def _spread(V: Array, H: Array, code: _Coder, order: NDArray[np.int64]) -> Array:
    """Codes for |X^ (v - q)|^2 in this order, each with the free weights at their least-squares solution.

    With R'R = H, R upper triangular, the inputs in reverse order, the centre of i is
    v_i + sum over those already fixed of R_ij (v_j - q_j) / R_ii.
    """
    p = order[::-1]
    R = np.linalg.cholesky(H[np.ix_(p, p)]).T
    E = np.zeros((len(p), len(V)))  # v - q of the fixed inputs
    for i in reversed(range(len(p))):
        E[i] = V[:, p[i]] - code(int(p[i]), V[:, p[i]] + R[i, i + 1 :] @ E[i + 1 :] / R[i, i])
    Q = V.copy()
    Q[:, p] -= E.T
    return Q


def _gptq(W: Array, H: Array, M: Array, code: _Coder, order: NDArray[np.int64]) -> Array:
    return _spread(W, H, code, order)


def _gpfq(W: Array, H: Array, M: Array, code: _Coder, order: NDArray[np.int64]) -> Array:
    Q = np.zeros_like(W)
    for k, t in enumerate(order):
        past, now = order[:k], order[: k + 1]
        Q[:, t] = code(int(t), (W[:, now] @ M[t, now] - Q[:, past] @ H[t, past]) / H[t, t])
    return Q


def _qronos(W: Array, H: Array, M: Array, code: _Coder, order: NDArray[np.int64]) -> Array:
    t, rest = order[0], order[1:]
    first = code(int(t), W[:, t] + W @ (M - H)[t] / H[t, t])
    V = W.copy()
    V[:, t] = first
    if len(rest):
        free = (W @ M.T)[:, rest] - first[:, None] * H[t, rest]
        V[:, rest] = np.linalg.solve(H[np.ix_(rest, rest)], free.T).T
        V = _spread(V, H, code, rest)
    return V


def _descent(W: Array, H: Array, M: Array, code: _Coder, order: NDArray[np.int64]) -> Array:
    Q, B = _qronos(W, H, M, code, order), W @ M.T
    for _ in range(ROUNDS):
        S = B - Q @ H  # the gradient, halved and negated
        for t in order:
            now = code(int(t), Q[:, t] + S[:, t] / H[t, t], Q[:, t])
            S -= np.outer(now - Q[:, t], H[t])
            Q[:, t] = now
        Q = _refitted(Q, H, B, code)
    return Q


def row_errors(Q: Array, H: Array, B: Array) -> Array:
    """|X w - X^ q|^2 of each row less |X w|^2, with B = W M'."""
    return np.asarray(np.sum(Q * (Q @ H - 2 * B), axis=1))


def _refitted(Q: Array, H: Array, B: Array, code: _Coder) -> Array:
    """The values with scales at their least squares for these codes, where that lowers the error; `code` follows.

    Scales are rounded to float32.  Where a scale is not one a row, or one a tensor of one group, nothing is done.
    """
    if not code.scale_rows:
        return Q
    C = code.codes.transpose(1, 0, 2).astype(np.float64)  # (rows, T, K)
    A, b = C @ H @ C.transpose(0, 2, 1), np.einsum("otk,ok->ot", C, B)
    if code.scale_rows == "one":
        A, b = (np.broadcast_to(v.sum(axis=0), v.shape) for v in (A, b))
    alpha = np.einsum("ost,ot->os", np.linalg.pinv(A, hermitian=True), b).astype(np.float32).astype(np.float64)
    used = np.diagonal(A, axis1=1, axis2=2) > 0
    alpha = np.where(used, alpha, code.alpha[:, :, 0].T)
    refitted = np.einsum("otk,ot->ok", C, alpha)
    gain = row_errors(Q, H, B) - row_errors(refitted, H, B)
    if code.scale_rows == "one":
        gain = np.full_like(gain, gain.sum())
    better = (gain > 0) & np.all(alpha > 0, axis=1)
    if code.scale_rows == "one":
        better[:] = better.all()
    code.alpha[:, better] = alpha.T[:, better, None]
    return np.where(better[:, None], refitted, Q)


def _keep(given: tuple[NDArray[Any], Array], code: _Coder, rows: NDArray[np.bool_]) -> None:
    """Give rows the codes and scales that they began with."""
    rows = np.full_like(rows, rows.all()) if code.scale_rows == "one" else rows
    code.codes[:, rows], code.alpha[:, rows] = given[0][:, rows], given[1][:, rows]


FORMS: dict[str, Form] = {"gptq": _gptq, "gpfq": _gpfq, "qronos": _qronos, "descent": _descent}
"""name -> how the codes of a layer are found."""


def mean_shift(W: NDArray[Any], W_hat: NDArray[Any], mean: Array, mean_hat: Array) -> Array:
    """E(W x) - E(W^ x^) of every output, shape (outputs,), from means of inputs of shape (groups, K).

    >>> mean_shift(np.array([[2.0]]), np.array([[1.0]]), np.array([[3.0]]), np.array([[4.0]])).tolist()
    [2.0]
    """
    G, K = mean.shape
    made = [
        np.einsum("gok,gk->go", w.reshape(G, -1, K).astype(np.float64), m).ravel()
        for w, m in ((W, mean), (W_hat, mean_hat))
    ]
    return np.asarray(made[0] - made[1])


# ---- a layer, and the network ---------------------------------------------------------------------------------


def sequential_layer(
    W: NDArray[Any], start: MultiTerm, moments: LayerMoments, form: str, order: NDArray[np.int64] | None = None
) -> MultiTerm:
    """The weight with codes found in sequence, on the scales of `start` (those that `descent` does not refit).

    Of more terms than `blocks.MOST_SUMS` allows to search at once, a row stays at `start` where that errs less.
    W: shape (outputs, ...), float.  moments: H positive definite, as `damped` makes it.
    order: of the inputs, for every group; by default those with the largest H_tt first, ties in order.

    Raises ArgumentError for an unknown form.

    >>> from ..quant.spec import QuantSpec
    >>> from ..solve.terms import encode_terms
    >>> W = np.float32([[0.6, 0.6]])
    >>> H = np.array([[[2.0, 1.9], [1.9, 1.81]]])  # of the inputs [1, 1] and [1, 0.9]
    >>> start = MultiTerm(np.array([[[1, 1]]]), np.array([1.0]), (QuantSpec(2),), np.array(1))
    >>> sequential_layer(W, start, LayerMoments(H, H, H[:, 0], H[:, 0]), "gptq").codes.tolist()
    [[[1, 0]]]
    """
    find = FORMS[one_of(form, FORMS, "form", "sequential_layer")]
    G, K = moments.H.shape[:2]
    spread = start.specs[0].granularity.spread
    rows = {PerChannel(0): "each", PerTensor(): "one" if G == 1 else ""}.get(start.specs[0].granularity, "")
    full = (start.terms, G, -1, K)
    codes = start.codes.reshape(full).copy()
    alpha = np.stack([np.broadcast_to(spread(s, start.shape), start.shape) for s in start.scales])
    alpha = alpha.reshape(full).astype(np.float64)
    counts = np.broadcast_to(spread(start.counts, start.shape), start.shape).reshape(full[1:])
    for g, (H, M) in enumerate(zip(moments.H, moments.M, strict=True)):
        first = np.argsort(-np.diagonal(H), kind="stable") if order is None else order
        code = _Coder(codes[:, g], alpha[:, g], counts[g], start.specs, rows)
        V, given = W.reshape(G, -1, K)[g].astype(np.float64), (codes[:, g].copy(), alpha[:, g].copy())
        Q = find(V, H, M, code, first)
        if len(code.blocks) > 1:
            _keep(given, code, row_errors((given[0] * given[1]).sum(axis=0), H, V @ M.T) < row_errors(Q, H, V @ M.T))
    scales = start.scales
    if rows:
        each = alpha.reshape(start.terms, -1, K)[:, :, 0].astype(scales.dtype)
        scales = each if rows == "each" else each[:, 0]
    return replace(start, codes=codes.reshape(start.codes.shape), scales=scales)


def _mixed(parts: list[LayerMoments], weights: list[int]) -> LayerMoments:
    """The moments of all images, from those of parts of so many."""
    return LayerMoments(*(np.average(moment, axis=0, weights=weights) for moment in zip(*parts, strict=True)))


def _validated_damping(W: Array, start: MultiTerm, fit: LayerMoments, held: LayerMoments) -> float:
    """The share of `SHARES` whose codes, found on some images, err least on others."""

    def error(share: float) -> float:
        Q = sequential_layer(W, start, fit.damped(share), "descent").decode(np.float64)
        G, K = held.H.shape[:2]
        rows = zip(Q.reshape(G, -1, K), W.reshape(G, -1, K), held.H, held.M, strict=True)
        return sum(float(row_errors(q, H, w @ M.T).sum()) for q, w, H, M in rows)

    return min(SHARES, key=error)


def sequential(task: Task, form: str = "descent") -> QuantPlan:
    """The plan with each layer's codes found in sequence, from what the quantized layers before it make.

    GPTQ, GPFQ and Qronos keep biases and scales, read activations as observed, and damp by `DAMPING`.  `descent`
    refits scales, its biases take the mean of X w - X^ q, activations have scales of least squared error, and each
    layer's damping is the one of `SHARES` whose codes err least on every fourth image, when found without these.

    Raises ArgumentError for an unknown form.
    """
    if one_of(form, FORMS, "form", "sequential") == "descent":
        task = with_least_error(task)

    def published(node: Node, X: NDArray[Any], X_hat: NDArray[Any]) -> tuple[MultiTerm, NDArray[Any]]:
        seen = layer_moments(node, X_hat if form == "gptq" else X, X_hat)
        return sequential_layer(task.weight(node), task.encode(node), seen.damped(), form), task.bias(node)

    def descent(node: Node, X: NDArray[Any], X_hat: NDArray[Any]) -> tuple[MultiTerm, NDArray[Any]]:
        W, start = task.weight(node).astype(np.float64), task.encode(node)
        held = np.arange(len(X)) % 4 == 3
        parts = [layer_moments(node, X[some], X_hat[some]) for some in (~held, held) if some.any()]
        seen = _mixed(parts, [len(X) - held.sum(), held.sum()][: len(parts)])
        fit, other = parts[0].centred(), parts[-1].centred()
        share = _validated_damping(W, start, fit, other)
        sums = sequential_layer(W, start, seen.centred().damped(share), form)
        shift = mean_shift(W, sums.decode(), seen.mean, seen.mean_hat)
        return sums, task.bias(node) + shift

    return walk(task, descent if form == "descent" else published, f"{form}, layer by layer")
