"""Which elements share one scale and one zero point: the whole tensor, a channel, or a group.

Each granularity knows the shape of its parameters for a tensor of a given shape, how to spread them
over that tensor, and how to lay the tensor out as rows (one row a parameter), which is how solvers
read it.
"""

import reprlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, complaint

__all__ = ["Granularity", "PerChannel", "PerGroup", "PerTensor", "granularity_from_json"]

Shape = tuple[int, ...]


def _integer(value: object, what: str, who: str) -> int:
    """The value as a Python integer, so that equal granularities have equal JSON; NumPy's integers are taken too."""
    if isinstance(value, np.integer):
        return int(value)
    if type(value) is not int:
        raise ArgumentError(complaint(f"{what}={reprlib.repr(value)}", "an integer", who))
    return value


def _axis(axis: int, shape: Shape, who: str) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ArgumentError(complaint(f"axis={axis} for a tensor of shape {shape}", "one of its axes", who))
    return axis % len(shape)


@dataclass(frozen=True)
class PerTensor:
    """One scale and one zero point for the whole tensor; parameters have shape ().

    >>> PerTensor().parameter_shape((2, 3))
    ()
    """

    def parameter_shape(self, shape: Shape) -> Shape:
        """The shape of scale and zero point for a tensor of this shape."""
        return ()

    def spread(self, parameter: NDArray[Any], shape: Shape) -> NDArray[Any]:
        """The parameter, broadcastable against the tensor."""
        return parameter

    def rows(self, x: NDArray[Any], fill: float = 0.0) -> NDArray[Any]:
        """The tensor as shape (parameters, elements), short rows filled up."""
        return x.reshape(1, -1)


@dataclass(frozen=True)
class PerChannel:
    """One scale and one zero point for each index along an axis; parameters have shape (channels,).

    >>> PerChannel(0).parameter_shape((2, 3))
    (2,)
    """

    axis: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "axis", _integer(self.axis, "axis", "PerChannel"))  # frozen for everyone else

    def parameter_shape(self, shape: Shape) -> Shape:
        """The shape of scale and zero point for a tensor of this shape."""
        return (shape[_axis(self.axis, shape, "PerChannel")],)

    def spread(self, parameter: NDArray[Any], shape: Shape) -> NDArray[Any]:
        """The parameter, broadcastable against the tensor."""
        after = len(shape) - 1 - _axis(self.axis, shape, "PerChannel")
        return parameter.reshape(parameter.shape + (1,) * after)

    def rows(self, x: NDArray[Any], fill: float = 0.0) -> NDArray[Any]:
        """The tensor as shape (parameters, elements), short rows filled up."""
        axis = _axis(self.axis, x.shape, "PerChannel")
        return np.moveaxis(x, axis, 0).reshape(x.shape[axis], x.size // x.shape[axis] if x.shape[axis] else 0)


@dataclass(frozen=True)
class PerGroup:
    """One scale and one zero point for each run of `size` elements along an axis (the last may be short).

    Parameters have the tensor's shape with that axis divided by `size`, rounded up (ONNX's blocks).

    >>> PerGroup(axis=1, size=2).parameter_shape((4, 5))
    (4, 3)
    """

    axis: int
    size: int

    def __post_init__(self) -> None:
        for field in ("axis", "size"):
            object.__setattr__(self, field, _integer(getattr(self, field), field, "PerGroup"))
        if self.size < 1:
            raise ArgumentError(complaint(f"size={self.size}", "at least 1", "PerGroup"))

    def parameter_shape(self, shape: Shape) -> Shape:
        """The shape of scale and zero point for a tensor of this shape."""
        axis = _axis(self.axis, shape, "PerGroup")
        return (*shape[:axis], -(-shape[axis] // self.size), *shape[axis + 1 :])

    def spread(self, parameter: NDArray[Any], shape: Shape) -> NDArray[Any]:
        """The parameter, broadcastable against the tensor."""
        axis = _axis(self.axis, shape, "PerGroup")
        return np.repeat(parameter, self.size, axis)[(slice(None),) * axis + (slice(shape[axis]),)]

    def rows(self, x: NDArray[Any], fill: float = 0.0) -> NDArray[Any]:
        """The tensor as shape (parameters, elements), short rows filled up."""
        axis = _axis(self.axis, x.shape, "PerGroup")
        short = -x.shape[axis] % self.size
        widths = [(0, short if a == axis else 0) for a in range(x.ndim)]
        full = np.pad(x, widths, constant_values=fill)
        groups = full.reshape(*x.shape[:axis], -1, self.size, *x.shape[axis + 1 :])
        return np.moveaxis(groups, axis + 1, -1).reshape(-1, self.size)


Granularity = PerTensor | PerChannel | PerGroup

_KINDS: dict[str, type[Granularity]] = {kind.__name__: kind for kind in (PerTensor, PerChannel, PerGroup)}


def granularity_from_json(data: object) -> Granularity:
    """The granularity that its JSON form `{"kind": ..., ...}` describes.

    >>> granularity_from_json({"kind": "PerGroup", "axis": 1, "size": 32})
    PerGroup(axis=1, size=32)
    """
    fields = dict(data) if isinstance(data, dict) else {}
    kind = fields.pop("kind", None)
    try:
        if not all(type(v) is int for v in fields.values()):
            raise TypeError
        return _KINDS[kind](**fields)
    except (KeyError, TypeError):
        forms = "PerTensor, PerChannel(axis) or PerGroup(axis, size), as {'kind': ..., fields}"
        raise ArgumentError(complaint(f"granularity {reprlib.repr(data)}", forms, "QuantSpec.from_json")) from None
