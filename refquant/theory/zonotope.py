"""Certificates checked by other code: zonotopes carried forward through one image's run, symbol by symbol.

Letters: a what the float run read, e = c + sum_k G_k s_k + d the error, s_k in [-1, 1] the symbols that all values
share, |d| <= D what roundings add; [lo, hi] an interval for e besides.

This is the textbook's affine arithmetic (Stolfi and de Figueiredo 1997; for Relu the chord, as in Singh et al. 2018),
one image at a time: slow, and independent of `affine`, `difference`, `pieces` and `relax` in everything but the
definitions of the ops.  It takes weights, quantizers and order from the plan by itself, and one formula for roundings:
(n + 8) u / (1 - (n + 8) u) times the sum of magnitudes, for sums of n products in float32; what float64 rounds here is
far below that.

For networks of Conv, Gemm, BatchNorm, Add, Concat, Flatten, pools, Relu and Quantize whose plans are not integer-only.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError, CertificateError, complaint
from ..net.edges import planned
from ..net.forward import forward
from ..net.graph import Graph, Node
from ..net.op import Params
from ..net.ops import OPS
from ..net.ops_pool import taps
from ..net.plan import ActivationQuantizer, QuantPlan
from ..quant.arguments import parameters
from ..quant.quantizer import fake_quantize
from .certificate import Certificates

__all__ = ["Zonotope", "check_certificates", "least_gaps"]

Reals = NDArray[np.float64]

SYMBOLS = 1024
"""Elements of a value whose roundings get symbols of their own, so that they may cancel, too."""

U32 = 2.0**-24
LEAST = 2.0**-126

REACH = {"floor": (-1.0, 0.0), "ceil": (0.0, 1.0), "toward_zero": (-1.0, 1.0), "away_from_zero": (-1.0, 1.0)}
"""Where rounding may move a number, in steps, for modes that do not take the nearest."""


class Zonotope(NamedTuple):
    """c, G of shape (symbols, *shape), D, lo, hi of an image's error at a value."""

    c: Reals
    G: Reals
    D: Reals
    lo: Reals
    hi: Reals

    @property
    def interval(self) -> tuple[Reals, Reals]:
        """The least and greatest e."""
        r = np.abs(self.G).sum(axis=0) + self.D
        r = r * (1 + 2.0**-40) + 2.0**-40 * np.abs(self.c)
        return np.maximum(self.lo, self.c - r), np.minimum(self.hi, self.c + r)


def _with_symbols(v: Zonotope, count: int) -> Reals:
    """G with so many symbols: those it lacks have coefficient 0."""
    return np.concatenate([v.G, np.zeros((count - len(v.G), *v.G.shape[1:]))])


def _fresh(count: int, r: Reals) -> Reals:
    """One new symbol, numbered from count, for each r > 0."""
    at = np.flatnonzero(r)
    G = np.zeros((count + len(at), r.size))
    G[count + np.arange(len(at)), at] = r.ravel()[at]
    return G.reshape(-1, *r.shape)


def _scaled(
    v: Zonotope, slope: Reals, rest: tuple[Reals, Reals], ends: tuple[Reals, Reals], a: Reals, count: int
) -> Zonotope:
    """slope e plus a rest in an interval: a new symbol where that is not a single number.

    ends: of the result; a: of the size of the numbers that all these were computed from.
    """
    low, high = rest
    new = _fresh(count, (high - low) / 2)
    new[: len(v.G)] += slope * v.G
    lost = 2.0**-48 * (np.abs(a) + np.abs(low) + np.abs(high) + np.abs(v.c) + np.abs(v.G).sum(axis=0))
    lost = np.where((slope == 0) & (low == 0) & (high == 0), 0.0, lost)  # surely 0
    return Zonotope(slope * v.c + (low + high) / 2, new, slope * v.D + lost, ends[0] - lost, ends[1] + lost)


# ---- ops ------------------------------------------------------------------------------------------------------


SUMS: Mapping[str, Callable[[Node, Reals], int]] = {
    "AveragePool": lambda node, x: int(np.prod(node.attrs["kernel"])),
    "GlobalAvgPool": lambda node, x: x[0].size,
}
"""How many numbers an op without a weight adds up; others at most three."""


def _linear(node: Node, params: Params, a: Sequence[Reals], out: Reals, vs: Sequence[Zonotope], count: int) -> Zonotope:
    """All ops that are linear but for a constant: run on the centre, and without it on every symbol."""
    op, wide = OPS[node.op], {role: np.asarray(v, np.float64) for role, v in params.items()}

    def run(inputs: Sequence[Reals]) -> Reals:
        return np.asarray(op.forward(node.attrs, wide, inputs), np.float64)

    zero = run([np.zeros((1, *x.shape)) for x in a])[0]
    size = dict(wide)
    if "weight" in wide:
        size = {role: np.abs(v) for role, v in wide.items()}
    elif "gamma" in wide:
        size["gamma"], size["beta"], size["mean"] = np.abs(wide["gamma"]), np.abs(wide["beta"]), -np.abs(wide["mean"])

    def magnitude(inputs: Sequence[Reals]) -> Reals:
        return np.asarray(op.forward(node.attrs, size, inputs), np.float64)

    ends = [v.interval for v in vs]
    reach = [np.maximum(np.abs(low), np.abs(high)) for low, high in ends]
    n = wide["weight"][0].size if "weight" in wide else SUMS[node.op](node, a[0]) if node.op in SUMS else 3
    mass = magnitude([(np.abs(x) + r)[None] for x, r in zip(a, reach, strict=True)])[0] + np.abs(out)
    u = (n + 8) * U32
    lost = u / (1 - u) * mass + n * LEAST if node.op not in ("Concat", "Flatten") else np.zeros_like(mass)
    none = magnitude([np.zeros((1, *x.shape)) for x in a])[0]
    D = (magnitude([v.D[None] for v in vs])[0] - none) * (1 + 2.0**-40) + lost
    c = run([(x + v.c)[None] for x, v in zip(a, vs, strict=True)])[0] - out
    G = run([_with_symbols(v, count) for v in vs]) - zero
    mid = [(low + high) / 2 for low, high in ends]
    rad = [(high - low) / 2 * (1 + 2.0**-40) for low, high in ends]
    centre = run([(x + m)[None] for x, m in zip(a, mid, strict=True)])[0] - out
    wobble = (magnitude([r[None] for r in rad])[0] - none) * (1 + 2.0**-40) + lost
    if c.size <= SYMBOLS:
        dust, D = _fresh(count, D), np.zeros_like(D)
        dust[:count] += G
        G = dust
    return Zonotope(c, G, D, centre - wobble, centre + wobble)


def _relu(a: Reals, v: Zonotope, count: int) -> Zonotope:
    lo, hi = v.interval
    low, high = np.maximum(a + lo, 0) - np.maximum(a, 0), np.maximum(a + hi, 0) - np.maximum(a, 0)
    off, on = (a <= 0) & (a + hi <= 0), (a >= 0) & (a + lo >= 0)
    width = np.where(hi > lo, hi - lo, 1.0)
    slope = np.where(off, 0.0, np.where(on, 1.0, (high - low) / width))
    kink = np.clip(-a, lo, hi)  # phi(e) - slope e is convex: greatest at the ends, least at the kink
    least = np.maximum(a + kink, 0) - np.maximum(a, 0) - slope * kink
    most = np.maximum(low - slope * lo, high - slope * hi)
    sure = off | on
    rest = np.where(sure, 0.0, least), np.where(sure, 0.0, most)
    return _scaled(v, slope, rest, (low, high), a, count)


def _max_pool(node: Node, a: Reals, out: Reals, v: Zonotope, count: int) -> Zonotope:
    """The error at the place w of the float run's maximum and what others may lead it by; or just the interval."""

    def seen(x: Reals, fill: float) -> Reals:
        return np.stack(list(taps(node.attrs, x if x.ndim == 4 else x[None], fill)))

    lo, hi = v.interval
    low, high = seen(a + lo, -np.inf)[:, 0], seen(a + hi, -np.inf)[:, 0]
    w = seen(a, -np.inf)[:, 0].argmax(axis=0)[None]
    rivals = np.where(np.arange(len(low)).reshape(-1, *(1,) * w[0].ndim) == w, -np.inf, high).max(axis=0)
    ends = (low.max(axis=0) - out, high.max(axis=0) - out)

    def winner(x: Reals) -> Reals:
        at = np.broadcast_to(w[:, None], (1, len(x), *w[0].shape))
        return np.asarray(np.take_along_axis(seen(x, 0.0), at, axis=0)[0])

    G = winner(v.G) if len(v.G) else np.zeros((0, *out.shape))
    own = Zonotope(winner(v.c[None])[0], G, winner(v.D[None])[0], *ends)
    lead = np.maximum(rivals - np.take_along_axis(low, w, axis=0)[0], 0.0)  # e_out is that of w, or up to so much more
    near = lead < ends[1] - ends[0]
    rest = np.where(near, 0.0, ends[0]), np.where(near, lead, ends[1])
    return _scaled(own, near.astype(float), rest, ends, out, count)


def _quantize(a: Reals, q: ActivationQuantizer, v: Zonotope, count: int, specified: bool) -> Zonotope:
    """e + d with d the rounding of v = a + e onto the grid; or, with codes as specified, a few of these."""
    lo, hi = v.interval
    s, z = (np.asarray(p, np.float64)[0] if np.ndim(p) else float(p) for p in _spread(q, a))
    low, high = REACH.get(q.spec.rounding, (-0.5, 0.5))
    bottom, top = s * (q.spec.qmin - z), s * (q.spec.qmax - z)
    slack = 2.0**-20 * (np.abs(bottom) + np.abs(top) + s)
    d_low = np.maximum(np.minimum(s * low, top - (a + hi)), bottom - (a + hi)) - slack
    d_high = np.minimum(np.maximum(s * high, bottom - (a + lo)), top - (a + lo)) + slack
    Q = [_image(q, a + end, way) for end, way in ((lo, -np.inf), (hi, np.inf))]
    known = lo == hi
    d_low, d_high = np.where(known, Q[0] - a - lo, d_low), np.where(known, Q[1] - a - lo, d_high)
    few = (Q[1] - Q[0] <= d_high - d_low) & specified & ~known
    rest = np.where(few, Q[0] - a, d_low), np.where(few, Q[1] - a, d_high)
    ends = np.where(few, rest[0], lo + d_low), np.where(few, rest[1], hi + d_high)
    return _scaled(v, np.where(few, 0.0, 1.0), rest, ends, a, count)


def _spread(q: ActivationQuantizer, a: Reals) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    return parameters(q.scale, q.zero_point, (1, *a.shape), q.spec, "zonotope")


def _image(q: ActivationQuantizer, v: Reals, way: float) -> Reals:
    """Q at a float32 no nearer than v, for v of one image."""
    x = v.astype(np.float32)
    x = np.where((x < v) if way > 0 else (x > v), np.nextafter(x, np.float32(way)), x)
    return np.asarray(fake_quantize(x[None], q.scale, q.zero_point, spec=q.spec)[0], np.float64)


# ---- a run ----------------------------------------------------------------------------------------------------

LINEAR = ("Conv", "Gemm", "BatchNorm", "Add", "Concat", "Flatten", "AveragePool", "GlobalAvgPool")


def least_gaps(graph: Graph, plan: QuantPlan, seen: Mapping[str, Reals], start: Zonotope, specified: bool) -> Reals:
    """Lower bounds on the gaps of an image's float class to every class, shape (C,), infinite at itself.

    seen: the float run's tensors by the names of `graph`, of this image.  start: the error of the input.

    Raises ArgumentError for an op or a plan that the module is not for.
    """
    if plan.integer is not None:
        raise ArgumentError(complaint("a plan for an integer-only network", "another", "zonotope"))
    folded = planned(graph, plan)
    became = {name: name for name in folded.shapes}  # whose output the float run shows under another name
    became |= {node.inputs[0]: node.name for node in graph.nodes if node.name not in folded.shapes}
    found, count = {folded.input.name: start}, len(start.G)
    for node in folded.nodes:
        a, out = [seen[became[t]] for t in node.inputs], seen[became[node.name]]
        vs, params = [found[t] for t in node.inputs], folded.params(node)
        if OPS[node.op].linear:
            if node.inputs[0] in plan.activations:
                vs = [_quantize(a[0], plan.activations[node.inputs[0]], vs[0], count, specified)]
                count = max(count, len(vs[0].G))
            weight = plan.weight(node.name)
            params = params if weight is None else {**params, "weight": weight}
        if node.op in LINEAR:
            made = _linear(node, params, a, out, vs, count)
        elif node.op == "Relu":
            made = _relu(a[0], vs[0], count)
        elif node.op == "MaxPool":
            made = _max_pool(node, a[0], out, vs[0], count)
        else:
            raise ArgumentError(complaint(f"op {node.op}", "one that the checker knows", "zonotope"))
        found[node.name], count = made, max(count, len(made.G))
    v, z = found[folded.output], seen[graph.output]
    y = int(z.argmax())
    centre, spread = z[y] + v.c[y] - (z + v.c), np.abs(v.G[:, [y]] - v.G).sum(axis=0) + v.D[y] + v.D
    scale = np.abs(z).max() + np.abs(v.c).max() + np.abs(v.G).sum(axis=0).max()
    lo, hi = v.interval
    gaps = np.maximum(centre - spread * (1 + 2.0**-40), z[y] + lo[y] - (z + hi)) - 2.0**-40 * scale
    gaps[y] = np.inf
    return np.asarray(gaps)


def check_certificates(graph: Graph, plan: QuantPlan, x: ArrayLike, found: Certificates) -> Reals:
    """The least gaps that this module proves, shape (N, C), for single images; every certificate is confirmed by them.

    Raises CertificateError where an image is said to be certified and is not proved here, or has another class, and
    ArgumentError for certificates of regions, which it does not check, and as `least_gaps`.

    >>> from ..net.graph import InputSpec
    >>> from .certificate import certify
    >>> z = Node("z", "Gemm", ("x",), {"in_features": 2, "out_features": 2}, {"weight": "w"})
    >>> graph = Graph("same", InputSpec("x", (2,)), "z", (z,), {"w": np.eye(2, dtype=np.float32)})
    >>> found = certify(graph, QuantPlan(), [[3.0, 1.0]])
    >>> check_certificates(graph, QuantPlan(), [[3.0, 1.0]], found).round(4).tolist()
    [[inf, 2.0]]
    """
    if found.radius:
        raise ArgumentError(complaint(f"radius={found.radius}", "0", "check_certificates"))
    _, trace = forward(graph, x, trace=True)
    proved = np.empty_like(found.gaps)
    for n, certified in enumerate(found.certified):
        seen = {name: v[n].astype(np.float64) for name, v in trace.items()}
        zero = np.zeros_like(seen[graph.input.name])
        start = Zonotope(zero, np.zeros((0, *zero.shape)), zero, zero, zero)
        proved[n] = least_gaps(graph, plan, seen, start, found.specified)
        if found.classes[n] != seen[graph.output].argmax() or (certified and not (proved[n] > 0).all()):
            got = f"image {n}, certified class {found.classes[n]}, gaps {proved[n].round(6).tolist()}"
            raise CertificateError(complaint(got, "the float class, with gaps above 0", "check_certificates"))
    return proved
