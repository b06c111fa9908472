"""What an op is: the attributes and arrays it takes, the shape it gives, and its rules.

Shapes are per image, without the batch axis; arrays in rules have it, first.  The rules of one op stand
side by side in one `Op`; the ops themselves are defined by kind (`ops_linear`, `ops_norm`, `ops_pool`,
`ops_pointwise`, `ops_quantize`) and those of networks gathered in `ops.OPS`.

Letters of the rules of derivatives: J the Jacobian of an op's output by its inputs and params at a point,
v a tangent (where they move), u a cotangent (what a change of the output is worth): J v and J^T u.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "AXIS",
    "COUNT",
    "FLAG",
    "PADDING",
    "PAIR",
    "POSITIVE",
    "Array",
    "Attr",
    "Attrs",
    "Misfit",
    "Op",
    "Param",
    "Params",
    "Point",
    "Rule",
    "Shape",
    "Slot",
    "Tangents",
    "by_channel",
    "fit",
    "images_last",
    "optional",
    "symmetric",
]

Array: TypeAlias = NDArray[Any]  # of floats: float32 in a float network, float64 where integers or exact reals run
Shape: TypeAlias = tuple[int, ...]
Attrs: TypeAlias = Mapping[str, Any]
Params: TypeAlias = Mapping[str, Array]
Slot: TypeAlias = int | str
"""A place that an op reads: the number of an input, or the op's name of a param."""

Tangents: TypeAlias = Mapping[Slot, Array]


class Misfit(Exception):  # noqa: N818 (the field's word for it would be ShapeError; attributes misfit too)
    """Something does not fit an op: what was got, and what it should be."""

    def __init__(self, got: str, should: str) -> None:
        super().__init__(got, should)
        self.got, self.should = got, should


def fit(fits: bool, got: str, should: str) -> None:
    """Nothing, if it fits.

    Raises Misfit otherwise.

    >>> fit(True, "3 channels", "3 channels")
    """
    if not fits:
        raise Misfit(got, should)


# ---- attributes -----------------------------------------------------------------------------------------------


def _count(value: object) -> int | None:
    return value if type(value) is int and 1 <= value < 2**31 else None


def _axis(value: object) -> int | None:
    return value if type(value) is int and 1 <= value < 8 else None


def _flag(value: object) -> bool | None:
    return value if type(value) is bool else None


def _positive(value: object) -> float | None:
    return float(value) if type(value) in (int, float) and 0 < value < 2**63 else None  # type: ignore[operator, arg-type]  # it is a number: just tested


def _integers(value: object, least: int) -> tuple[int, ...]:
    """The items of a list or tuple of integers from `least`; () for anything else."""
    if not isinstance(value, (list, tuple)) or not all(type(v) is int and least <= v < 2**31 for v in value):
        return ()
    return tuple(value)


def _pair(value: object) -> tuple[int, ...] | None:
    items = _integers(value, 1)
    return items if len(items) == 2 else None


def _padding(value: object) -> tuple[int, ...] | None:
    items = _integers(value, 0)
    return {2: items * 2, 4: items}.get(len(items))


@dataclass(frozen=True)
class Attr:
    """An attribute: what it should be, its reader (from a value to its normal form, None if unfit), its default."""

    should: str
    read: Callable[[object], Any]
    default: Any = None  # None: required


COUNT = Attr("an integer of at least 1", _count)
PAIR = Attr("a list [vertical, horizontal] of integers of at least 1", _pair)
PADDING = Attr("[vertical, horizontal] or [top, left, bottom, right], integers of at least 0", _padding)
POSITIVE = Attr("a number above 0 and below 2^63", _positive)
FLAG = Attr("true or false", _flag)
AXIS = Attr("an axis of the batch from 1 (0 counts the images)", _axis)


def optional(kind: Attr, default: object) -> Attr:
    """The same kind of attribute, with a default in normal form.

    >>> optional(COUNT, 1).default
    1
    """
    return replace(kind, default=default)


# ---- derivatives ----------------------------------------------------------------------------------------------


class Point(NamedTuple):
    """Where an op was evaluated: what it read, what it gave, and what it remembered (see `Op.record`)."""

    attrs: Attrs
    params: Params
    inputs: Sequence[Array]
    output: Array
    memory: Any = None


class Rule(NamedTuple):
    """The derivative of an op at a point: a linear map and its transpose.

    vjp: (point, u, wanted slots) -> J^T u for these slots, each of its slot's shape; params have the sum over images.
    jvp: (point, tangents of some slots, at least one) -> J v, of the output's shape; the other slots do not move.
    Both take arrays in any memory order, may return a view of one, and change none.
    """

    vjp: Callable[[Point, Array, Collection[Slot]], dict[Slot, Array]]
    jvp: Callable[[Point, Tangents], Array]


def symmetric(product: Callable[[Point, Array], Array]) -> Rule:
    """The rule of an op of one input, without params, whose Jacobian is symmetric: product(at, v) = J v = J^T v.

    >>> double = symmetric(lambda at, v: 2 * v)
    >>> at = Point({}, {}, [np.ones(3)], np.full(3, 2.0))
    >>> double.vjp(at, np.ones(3), [0])[0].tolist(), double.jvp(at, {0: np.ones(3)}).tolist()
    ([2.0, 2.0, 2.0], [2.0, 2.0, 2.0])
    """
    return Rule(lambda at, u, wanted: {0: product(at, u)}, lambda at, v: product(at, v[0]))


def images_last(x: Array) -> Array:
    """The same array, shape (N, ...), with the images last in memory; x itself where they are.

    Then loops over strided windows run along the batch, not along a short row of pixels, one channel of all images
    is one run of memory, and the patches of a batch are one matrix.  Elementwise NumPy keeps the order.

    >>> images_last(np.zeros((4, 2, 3))).strides
    (8, 96, 32)
    """
    last = range(x.ndim - 1)  # `transpose`, since `moveaxis` takes longer than a small copy
    return np.ascontiguousarray(x.transpose(*range(1, x.ndim), 0)).transpose(-1, *last)


def by_channel(x: Array) -> Array:
    """A tensor of shape (N, C, ...) as (C, all that belongs to a channel): a view where the images are last.

    >>> by_channel(np.arange(8).reshape(2, 2, 2)).tolist()
    [[0, 4, 1, 5], [2, 6, 3, 7]]
    """
    return np.moveaxis(x, 0, -1).reshape(x.shape[1], -1)


# ---- ops ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Param:
    """An array that a node takes: its shape from the attributes, whether negative values make sense.

    trained: whether gradients train it; else it is measured.
    """

    shape: Callable[[Attrs], Shape]
    optional: bool = False
    signed: bool = True
    trained: bool = True


def _no_macs(attrs: Attrs, shape: Shape) -> int:
    return 0


@dataclass(frozen=True)
class Op:
    """One kind of node.

    shape: (attrs, input shapes) -> output shape, all per image; raises Misfit.
    forward: (attrs, params, inputs) -> output, arrays of one float type with the batch axis first; may
    return a view of an input, never changes one.
    derivative: its `Rule`.
    record: None, or forward for derivatives: (output, memory for `Point`).  It may round otherwise than forward,
    which gives each image the same bits whatever the batch; record is as quick as it can be.
    arity: least and most number of inputs (None: any).  macs: multiply-accumulates per image, from the
    output shape.  linear: whether it multiplies its input by an array `weight`, which is what a
    quantization plan speaks of.
    """

    shape: Callable[[Attrs, Sequence[Shape]], Shape]
    forward: Callable[[Attrs, Params, Sequence[Array]], Array]
    derivative: Rule
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    params: Mapping[str, Param] = field(default_factory=dict)
    arity: tuple[int, int | None] = (1, 1)
    macs: Callable[[Attrs, Shape], int] = _no_macs
    linear: bool = False
    record: Callable[[Attrs, Params, Sequence[Array]], tuple[Array, Any]] | None = None

    def read_attrs(self, given: Mapping[str, object]) -> dict[str, Any]:
        """Every attribute in its normal form: pairs and paddings are tuples (padding of four), defaults filled in.

        Raises Misfit for a name that the op does not have, a missing one, or a value that is unfit.
        """
        unknown = sorted(set(given) - set(self.attrs))
        fit(not unknown, f"attribute {', '.join(unknown)}", f"among {', '.join(self.attrs) or 'none'}")
        return {name: _read(name, attr, given) for name, attr in self.attrs.items()}

    def at(self, attrs: Attrs, params: Params, inputs: Sequence[Array]) -> Point:
        """The op evaluated, with all that its derivative needs."""
        if self.record is None:
            return Point(attrs, params, inputs, self.forward(attrs, params, inputs))
        return Point(attrs, params, inputs, *self.record(attrs, params, inputs))


def _read(name: str, attr: Attr, given: Mapping[str, object]) -> Any:
    if name not in given:
        fit(attr.default is not None, f"no attribute {name}", f"given: {attr.should}")
        return attr.default
    value = attr.read(given[name])
    fit(value is not None, f"attribute {name}={given[name]!r}", attr.should)
    return value
