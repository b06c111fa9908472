"""How far noise inside a network reaches: second moments of what it adds to an output, exactly or by probes.

Letters: J the Jacobian of the output, for one image, by the values where noise enters; sigma_i^2 the variance of noise
i; r rows, cotangents of the output; M_rs = sum over i of sigma_i^2 (J^T r)_i (J^T s)_i.

Elements of a channel that are equal, as those of a flat background are, are rounded alike: they share one noise, whose
column of J is the sum of theirs.  A tensor without channels counts as one.

With the unit vectors for rows, M is the covariance of the noise at the output and its trace the power,
sum_i |J_i|^2 sigma_i^2.  With rows of random signs, E M_rr is that power too (Hutchinson 1990): for outputs too wide to
take every row.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..net.gradient import Tape, pullback
from ..net.op import Array, Point
from ..net.ops_linear import patches
from .pair import Source

__all__ = ["probe_rows", "second_moments", "unit_rows"]

Reals = NDArray[np.float64]

ALIKE = 2.0**-22
"""Values closer than so much of max|x| are equal: float32 images, after three roundings."""


def unit_rows(output: Array) -> Reals:
    """The unit vectors of an output of shape (N, ...), for every image: shape (elements, N, ...).

    >>> unit_rows(np.zeros((1, 2))).tolist()
    [[[1.0, 0.0]], [[0.0, 1.0]]]
    """
    size = output[0].size
    return np.broadcast_to(np.eye(size)[:, None], (size, len(output), size)).reshape(size, *output.shape)


def probe_rows(output: Array, probes: int, rng: np.random.Generator) -> Reals:
    """Rows of random signs, independent from image to image: shape (probes, N, ...).

    >>> probe_rows(np.zeros((1, 2)), 3, np.random.default_rng(0)).shape
    (3, 1, 2)
    """
    return rng.choice([-1.0, 1.0], size=(probes, *output.shape))


def second_moments(tape: Tape, rows: Reals, variances: Mapping[Source, tuple[str, Array]]) -> dict[Source, Reals]:
    """M for every source and image: shape (N, rows, rows).

    variances: by source, the value at which noise enters and its variance there: of a tensor, (N, ...), noise of its
    own for every image; of a weight, of the weight's shape, noise that all positions of an image share.
    """
    if not variances:
        return {}
    places = {s: value if s.kind == "activation" else s.name for s, (value, _) in variances.items()}
    each = [pullback(tape, row, set(places.values())) for row in rows]
    found = {}
    for source, (_, variance) in variances.items():
        u = np.array([worth[places[source]] for worth in each])
        if source.kind == "activation":
            found[source] = _of_activation(tape.values[places[source]], u * np.sqrt(variance))
        else:
            found[source] = _of_weight(tape.points[source.name], u, variance)
    return found


def _of_activation(x: Array, u: Reals) -> Reals:
    """M of noise that equal elements of a channel share; u: rows times deviations, shape (R, *x.shape)."""
    R, N, C = u.shape[:3] if u.ndim > 3 else (*u.shape[:2], 1)
    values = x.reshape(N, C, -1)
    order = values.argsort(axis=-1)
    ordered = np.take_along_axis(values, order, axis=-1)
    new = np.diff(ordered, axis=-1, prepend=-np.inf) > ALIKE * np.abs(x).max(initial=0.0)
    starts = np.flatnonzero(new)
    each = np.take_along_axis(u.reshape(R, N, C, -1), order[None], axis=-1)
    columns = np.add.reduceat(each.reshape(R, -1), starts, axis=1)
    first = np.searchsorted(starts, np.arange(N + 1) * (values[0].size))
    parts = [columns[:, first[n] : first[n + 1]] for n in range(N)]
    return np.array([part @ part.T for part in parts])


def _of_weight(at: Point, u: Reals, variance: Array) -> Reals:
    """M of a weight's noise: the gradient for one image is U P^T, with U the cotangent and P the patches."""
    R, N = u.shape[:2]
    P = patches(at.attrs, at.inputs[0])  # (N, G, K, L)
    G, K, L = P.shape[1:]
    deviation = np.sqrt(variance).reshape(G, -1, K)
    M = np.empty((N, R, R))
    for n in range(N):
        gradient = u[:, n].reshape(R, G, -1, L) @ P[n].transpose(0, 2, 1)
        flat = (gradient * deviation).reshape(R, -1)
        M[n] = flat @ flat.T
    return M
