"""Which quantizer stands on which edge: the result of quantizing a network, as a value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quant.integer_spec import IntegerSpec
from ..quant.multiterm import MultiTerm
from ..quant.quantizer import fake_quantize
from ..quant.spec import QuantSpec
from .op import Array

__all__ = ["ActivationQuantizer", "QuantPlan"]


@dataclass(frozen=True, eq=False)
class ActivationQuantizer:
    """A quantizer with its parameters; scale and zero_point as in `refquant.quantize`, for a batch."""

    spec: QuantSpec
    scale: NDArray[Any]
    zero_point: NDArray[Any]


@dataclass(frozen=True, eq=False)
class QuantPlan:
    """The quantized weights of a network whose batch norms are folded, and the quantizers of its activations.

    weights: from the name of a Conv or Gemm to its weight as a sum of low-bit terms; others stay float.
    activations: from the name of a tensor to the quantizer applied where a Conv or Gemm reads that tensor;
    other readers, such as an Add on a skip path, see it unquantized.
    biases: from the name of a Conv or Gemm to the bias that it has in place of its own, float32 of shape (outputs,);
    others keep theirs.
    integer: None, or the plan is for an integer-only network: then `activations` quantizes tensors for all
    their readers and has every tensor, the network's input and output too, except those that one Relu, Relu6,
    MaxPool or Flatten alone reads, and `weights` has every Conv and Gemm, one term each; biases become
    integers by clause N2.

    >>> plan = QuantPlan(activations={"x": ActivationQuantizer(QuantSpec(2), np.array(0.5), np.array(0))})
    >>> plan.activation("x", np.float32([0.3, 9.0])), plan.weight("conv1")
    (array([0.5, 0.5], dtype=float32), None)
    """

    weights: Mapping[str, MultiTerm] = field(default_factory=dict)
    activations: Mapping[str, ActivationQuantizer] = field(default_factory=dict)
    integer: IntegerSpec | None = None
    biases: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def weight(self, node: str) -> Array | None:
        """The decoded weight of a node in float32, None where it stays float."""
        terms = self.weights.get(node)
        return None if terms is None else terms.decode(np.float32)

    def activation(self, tensor: str, x: Array) -> Array:
        """The tensor as a Conv or Gemm reads it: x itself where it stays float."""
        quantizer = self.activations.get(tensor)
        if quantizer is None:
            return x
        return fake_quantize(x, quantizer.scale, quantizer.zero_point, spec=quantizer.spec)
