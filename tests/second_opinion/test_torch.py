"""PyTorch's three quantizers, on inputs at and next to ties."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import refquant as rq

SCALES = (0.1234567, 0.0371, 1 / 3, 0.0078125)


@pytest.mark.guarantee(
    "PyTorch quantize_per_tensor on 100,000 inputs next to ties a case", kind="second opinion", clauses="Q2 Q3 Q4"
)
@pytest.mark.parametrize("kind", ["qint8", "quint8"])
@pytest.mark.parametrize("z", [0, 3, 64])
@pytest.mark.filterwarnings("ignore")  # PyTorch announces that quantized tensors will move
def test_quantize_per_tensor(kind: str, z: int, near_ties: Callable[..., Any], agree: Callable[..., None]) -> None:
    spec = rq.profile("pytorch@2", signed=kind == "qint8")
    for scale in map(np.float32, SCALES):
        x = near_ties(scale)
        theirs = torch.quantize_per_tensor(torch.tensor(x), float(scale), z, getattr(torch, kind)).int_repr()
        agree(f"pytorch/quantize_per_tensor {kind} {z} {scale}", rq.quantize(x, scale, z, spec=spec), theirs.numpy())


@pytest.mark.guarantee("PyTorch quantize_per_channel", kind="second opinion", clauses="Q2 Q3 Q4")
@pytest.mark.filterwarnings("ignore")  # PyTorch announces that quantized tensors will move
def test_quantize_per_channel(near_ties: Callable[..., Any], agree: Callable[..., None]) -> None:
    rng = np.random.default_rng(1)
    scale, z = rng.uniform(0.01, 0.5, 8).astype(np.float32), rng.integers(-20, 20, 8)
    x = near_ties(np.repeat(scale, 12500)).reshape(8, 12500)
    theirs = torch.quantize_per_channel(torch.tensor(x), torch.tensor(scale).double(), torch.tensor(z), 0, torch.qint8)
    spec = replace(rq.profile("pytorch-channel@2"), granularity=rq.PerChannel(0))
    agree("pytorch/quantize_per_channel", rq.quantize(x, scale, z, spec=spec), theirs.int_repr().numpy())


@pytest.mark.guarantee("PyTorch fake_quantize, per tensor and channel", kind="second opinion", clauses="Q2 Q4 Q5 D2")
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_fake_quantize(bits: int, near_ties: Callable[..., Any], agree: Callable[..., None]) -> None:
    rng = np.random.default_rng(2)
    for signed in (True, False):
        spec = rq.profile("pytorch-fake@2", bits=bits, signed=signed)
        for scale in map(np.float32, SCALES):
            x, z = near_ties(scale), int(rng.integers(spec.qmin, spec.qmax + 1))
            theirs = torch.fake_quantize_per_tensor_affine(torch.tensor(x), float(scale), z, spec.qmin, spec.qmax)
            agree(f"pytorch/fake {bits} {scale}", rq.fake_quantize(x, scale, z, spec=spec), theirs.numpy())
    scales, zeros = rng.uniform(0.01, 0.5, 8).astype(np.float32), rng.integers(0, 2, 8).astype(np.int32)
    x = near_ties(np.repeat(scales, 12500)).reshape(8, 12500)
    spec = replace(rq.profile("pytorch-fake@2", bits=bits), granularity=rq.PerChannel(0))
    theirs = torch.fake_quantize_per_channel_affine(
        torch.tensor(x), torch.tensor(scales), torch.tensor(zeros), 0, spec.qmin, spec.qmax
    )
    agree(f"pytorch/fake per channel {bits}", rq.fake_quantize(x, scales, zeros, spec=spec), theirs.numpy())


@pytest.mark.guarantee("PyTorch MinMaxObserver: scales and zero points", kind="second opinion", clauses="R9 R10")
def test_observers(agree: Callable[..., None]) -> None:
    from torch.ao.quantization.observer import MinMaxObserver

    rng = np.random.default_rng(3)
    some = [rng.normal(rng.uniform(-2, 2), 1, 50) * 10.0 ** rng.integers(-9, 5) for _ in range(200)]
    small = [[0, 0], [0, 1e-44], [-1e-44, 0], [-1e-44, 1e-45], [-1e-40, 1e-38], [1e-45, 3e-45], [0, 2.0**-23 * 255]]
    for i, x in enumerate(np.asarray(v, np.float32) for v in [*some, *small]):
        for scheme, rule, dtype, signed in (
            (torch.per_tensor_affine, "torch-affine", torch.quint8, False),
            (torch.per_tensor_affine, "torch-affine", torch.qint8, True),
            (torch.per_tensor_symmetric, "torch-symmetric", torch.qint8, True),
        ):
            observer = MinMaxObserver(dtype=dtype, qscheme=scheme)
            observer(torch.tensor(x))
            scale, z = observer.calculate_qparams()
            ours = rq.range_parameters(x.min(), x.max(), spec=rq.QuantSpec(8, signed), rule=rule)
            agree(f"pytorch/{rule} scale {i}", ours[0], scale.numpy().reshape(()))
            agree(f"pytorch/{rule} zero point {i}", ours[1], z.numpy().reshape(()))
