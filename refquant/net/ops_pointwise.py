"""Activations, and the ops that combine or reshape tensors."""

import math
from collections.abc import Sequence

import numpy as np

from .op import AXIS, Array, Attrs, Op, Params, Shape, fit, optional

__all__ = ["ADD", "CONCAT", "FLATTEN", "RELU", "RELU6", "SOFTMAX"]


def _same_shape(attrs: Attrs, shapes: Sequence[Shape]) -> Shape:
    return shapes[0]


def _relu(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> Array:
    y: Array = np.maximum(inputs[0], np.float32(0))
    return y


def _relu6(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> Array:
    y: Array = np.minimum(_relu(attrs, params, inputs), np.float32(6))
    return y


RELU = Op(_same_shape, _relu)
RELU6 = Op(_same_shape, _relu6)


def _add_shape(attrs: Attrs, shapes: Sequence[Shape]) -> Shape:
    fit(shapes[0] == shapes[1], f"inputs of shapes {shapes[0]} and {shapes[1]}", "of one shape")
    return shapes[0]


def _add(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> Array:
    return inputs[0] + inputs[1]


ADD = Op(_add_shape, _add, arity=(2, 2))


def _flat(attrs: Attrs, shapes: Sequence[Shape]) -> Shape:
    return (math.prod(shapes[0]),)


def _flatten(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> Array:
    x = inputs[0]
    return x.reshape(len(x), math.prod(x.shape[1:]))  # -1 is not defined for no images


FLATTEN = Op(_flat, _flatten)


def _softmax_shape(attrs: Attrs, shapes: Sequence[Shape]) -> Shape:
    axis, axes = attrs["axis"], len(shapes[0]) + 1
    fit(axis < axes, f"axis={axis}", f"below {axes}, the axes of the batch")
    return shapes[0]


def _softmax(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> Array:
    x, axis = inputs[0], attrs["axis"]
    e = np.exp(x - x.max(axis=axis, keepdims=True))  # the largest exponent is 0: no overflow
    y: Array = e / e.sum(axis=axis, keepdims=True)
    return y


SOFTMAX = Op(_softmax_shape, _softmax, {"axis": optional(AXIS, 1)})


def _concat_shape(attrs: Attrs, shapes: Sequence[Shape]) -> Shape:
    first, axis = _softmax_shape(attrs, shapes), attrs["axis"] - 1
    others = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    got = f"inputs of shapes {', '.join(map(str, shapes))}"
    fit(len(others) == 1 and len({len(shape) for shape in shapes}) == 1, got, f"alike but for axis {axis + 1}")
    return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])


def _concat(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> Array:
    return np.concatenate(inputs, axis=attrs["axis"])


CONCAT = Op(_concat_shape, _concat, {"axis": optional(AXIS, 1)}, arity=(1, None))
