"""PyTorch as a backend: `refquant verify --callable torch_backend:quantized --profile pytorch@2`.

Two kernels of PyTorch, and two that one writes oneself and that are not the same.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from refquant.conform.operations import Request
from refquant.quant.granularity import PerChannel, PerTensor

Tensor = Any
TYPES = {(8, True): torch.qint8, (8, False): torch.quint8}


def asked(request: Request) -> tuple[Tensor, Tensor, Tensor]:
    """x, scale and zero point as tensors, where PyTorch has the semantics; NotImplementedError elsewhere."""
    if request.op not in ("quantize", "fake_quantize"):
        raise NotImplementedError(request.op)
    x, s, z = (np.asarray(request.inputs[name]) for name in ("x", "scale", "zero_point"))
    spec = request.spec
    if x.dtype != np.float32 or s.dtype != np.float32:
        raise NotImplementedError("float32 alone")
    if (spec.overflow, spec.dequantize, spec.narrow) != ("saturate", "scale-difference", False):
        raise NotImplementedError(f"{spec.overflow}, {spec.dequantize}")
    if not isinstance(spec.granularity, (PerTensor, PerChannel)) or np.isnan(x).any():
        raise NotImplementedError("groups, NaN")
    return torch.tensor(x), torch.tensor(s), torch.tensor(z)


def quantized(request: Request) -> Any:
    """quantize_per_tensor and quantize_per_channel, and back."""
    x, s, z = asked(request)
    kind = TYPES.get((request.spec.bits, request.spec.signed))
    if kind is None:
        raise NotImplementedError(f"{request.spec}")
    if isinstance(request.spec.granularity, PerChannel):
        q = torch.quantize_per_channel(x, s.double(), z, request.spec.granularity.axis, kind)
    else:
        q = torch.quantize_per_tensor(x, float(s), int(z), kind)
    return q.int_repr().numpy().astype(np.int32) if request.op == "quantize" else q.dequantize().numpy()


def fake_quantized(request: Request) -> Any:
    """fake_quantize_per_tensor_affine and fake_quantize_per_channel_affine."""
    x, s, z = asked(request)
    if request.op != "fake_quantize":
        return None  # there are no codes to be had
    spec = request.spec
    if isinstance(spec.granularity, PerChannel):
        axis = spec.granularity.axis % x.ndim
        y = torch.fake_quantize_per_channel_affine(x, s, z.to(torch.int32), axis, spec.qmin, spec.qmax)
    else:
        y = torch.fake_quantize_per_tensor_affine(x, float(s), int(z), spec.qmin, spec.qmax)
    return y.numpy()


def by_hand(request: Request, rounded: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """clamp(rounded(x, s) + z), and back."""
    x, s, z = asked(request)
    if isinstance(request.spec.granularity, PerChannel):
        wide = [-1 if d == request.spec.granularity.axis % x.ndim else 1 for d in range(x.ndim)]
        s, z = s.reshape(wide), z.reshape(wide)
    q = torch.clamp(rounded(x, s) + z, request.spec.qmin, request.spec.qmax)
    return q.numpy().astype(np.int32) if request.op == "quantize" else ((q - z) * s).numpy()


def divided(request: Request) -> Any:
    """PyTorch multiplies by the reciprocal."""
    return by_hand(request, lambda x, s: torch.round(x / s))


def half_added(request: Request) -> Any:
    """PyTorch's ties are even, and nothing is added that could round."""
    return by_hand(request, lambda x, s: torch.trunc(x * (1 / s) + torch.copysign(torch.tensor(0.5), x)))
