"""Activations, and the ops that combine or reshape tensors.

At a kink a derivative is the flat side's: relu'(0) = 0, relu6'(0) = relu6'(6) = 0.
"""

import math
from collections.abc import Collection, Sequence

import numpy as np

from .op import (
    AXIS,
    Array,
    Attrs,
    Op,
    Params,
    Point,
    Rule,
    Shape,
    Slot,
    Tangents,
    fit,
    images_last,
    optional,
    symmetric,
)

__all__ = ["ADD", "CONCAT", "FLATTEN", "RELU", "RELU6", "SOFTMAX"]


def _same_shape(attrs: Attrs, shapes: Sequence[Shape]) -> Shape:
    return shapes[0]


# ---- Relu, Relu6 ----------------------------------------------------------------------------------------------


def _relu(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> Array:
    y: Array = np.maximum(inputs[0], np.float32(0))
    return y


def _relu_slope(at: Point, v: Array) -> Array:
    y: Array = v * (at.output > 0)  # a product is much quicker than a choice by np.where
    return y


RELU = Op(_same_shape, _relu, symmetric(_relu_slope))


def _relu6(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> Array:
    y: Array = np.minimum(_relu(attrs, params, inputs), np.float32(6))
    return y


def _relu6_slope(at: Point, v: Array) -> Array:
    y: Array = v * ((at.output > 0) & (at.output < 6))
    return y


RELU6 = Op(_same_shape, _relu6, symmetric(_relu6_slope))


# ---- Add ------------------------------------------------------------------------------------------------------


def _add_shape(attrs: Attrs, shapes: Sequence[Shape]) -> Shape:
    fit(shapes[0] == shapes[1], f"inputs of shapes {shapes[0]} and {shapes[1]}", "of one shape")
    return shapes[0]


def _add(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> Array:
    return inputs[0] + inputs[1]


def _add_vjp(at: Point, u: Array, wanted: Collection[Slot]) -> dict[Slot, Array]:
    return dict.fromkeys(wanted, u)


def _add_jvp(at: Point, v: Tangents) -> Array:
    return v[0] + v[1] if len(v) == 2 else next(iter(v.values()))


ADD = Op(_add_shape, _add, Rule(_add_vjp, _add_jvp), arity=(2, 2))


# ---- Flatten --------------------------------------------------------------------------------------------------


def _flat(attrs: Attrs, shapes: Sequence[Shape]) -> Shape:
    return (math.prod(shapes[0]),)


def _flatten(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> Array:
    x = inputs[0]
    return x.reshape(len(x), math.prod(x.shape[1:]))  # -1 is not defined for no images


def _flatten_vjp(at: Point, u: Array, wanted: Collection[Slot]) -> dict[Slot, Array]:
    return {0: images_last(u).reshape(at.inputs[0].shape)}


FLATTEN = Op(_flat, _flatten, Rule(_flatten_vjp, lambda at, v: _flatten({}, {}, [v[0]])))


# ---- Softmax --------------------------------------------------------------------------------------------------


def _softmax_shape(attrs: Attrs, shapes: Sequence[Shape]) -> Shape:
    axis, axes = attrs["axis"], len(shapes[0]) + 1
    fit(axis < axes, f"axis={axis}", f"below {axes}, the axes of the batch")
    return shapes[0]


def _softmax(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> Array:
    x, axis = inputs[0], attrs["axis"]
    e = np.exp(x - x.max(axis=axis, keepdims=True))  # the largest exponent is 0: no overflow
    y: Array = e / e.sum(axis=axis, keepdims=True)
    return y


def _softmax_slope(at: Point, v: Array) -> Array:
    """(diag(p) - p p^T) v."""
    p = at.output
    y: Array = p * (v - (p * v).sum(axis=at.attrs["axis"], keepdims=True))
    return y


SOFTMAX = Op(_softmax_shape, _softmax, symmetric(_softmax_slope), {"axis": optional(AXIS, 1)})


# ---- Concat ---------------------------------------------------------------------------------------------------


def _concat_shape(attrs: Attrs, shapes: Sequence[Shape]) -> Shape:
    first, axis = _softmax_shape(attrs, shapes), attrs["axis"] - 1
    others = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    got = f"inputs of shapes {', '.join(map(str, shapes))}"
    fit(len(others) == 1 and len({len(shape) for shape in shapes}) == 1, got, f"alike but for axis {axis + 1}")
    return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])


def _concat(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> Array:
    return np.concatenate(inputs, axis=attrs["axis"])


def _concat_vjp(at: Point, u: Array, wanted: Collection[Slot]) -> dict[Slot, Array]:
    axis = at.attrs["axis"]
    ends = np.cumsum([x.shape[axis] for x in at.inputs])
    parts = np.split(u, ends[:-1], axis=axis)
    return {slot: parts[int(slot)] for slot in wanted}


def _concat_jvp(at: Point, v: Tangents) -> Array:
    return np.concatenate([v.get(i, np.zeros_like(x)) for i, x in enumerate(at.inputs)], axis=at.attrs["axis"])


CONCAT = Op(_concat_shape, _concat, Rule(_concat_vjp, _concat_jvp), {"axis": optional(AXIS, 1)}, arity=(1, None))
