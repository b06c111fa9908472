"""PyTorch and ONNX Runtime held to the packs: their kernels conform, what one writes instead of them is named."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refquant.conform.packs import Pack, level_one
from refquant.conform.verify import verify

sys.path.insert(0, str(Path(__file__).parent.parent / "clients"))

onnxruntime_backend: Any = pytest.importorskip("onnxruntime_backend", exc_type=ImportError)
torch_backend: Any = pytest.importorskip("torch_backend", exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch announces that quantized tensors will move


@pytest.fixture(scope="module")
def pack() -> Pack:
    return level_one()


RIGHT = {
    "pytorch@2": (torch_backend.quantized, {"quantize", "fake_quantize"}),
    "pytorch-channel@2": (torch_backend.quantized, {"quantize", "fake_quantize"}),
    "pytorch-fake@2": (torch_backend.fake_quantized, {"fake_quantize"}),
    "onnxruntime-cpu@1.32": (onnxruntime_backend.linear, {"quantize", "fake_quantize"}),
}


@pytest.mark.guarantee(
    "PyTorch and ONNX Runtime conform to level 1", kind="second opinion", clauses="Q1 Q2 Q3 Q4 Q5 Q6"
)
@pytest.mark.parametrize("profile", RIGHT)
def test_kernels_conform(profile: str, pack: Pack) -> None:
    backend, ops = RIGHT[profile]
    report = verify(backend, pack, profile, ops=ops)
    assert report.conforms, str(report)
    assert report.count("right") >= 0.75 * len(report.verdicts)


WRONG: list[tuple[Callable[..., Any], str, str]] = [
    (torch_backend.divided, "pytorch-fake@2", "quotient float32"),
    (torch_backend.half_added, "pytorch-fake@2", "half added away in float"),
    (torch_backend.divided, "pytorch@2", "quotient float32 with zero point after rounding"),
    (onnxruntime_backend.reciprocal, "onnxruntime-cpu@1.32", "reciprocal"),
    (onnxruntime_backend.half_added, "onnxruntime-cpu@1.32", "half added in float"),
]


@pytest.mark.guarantee("quantizers written by hand in PyTorch and ONNX are named by the diagnosis", kind="checked")
@pytest.mark.parametrize(("backend", "profile", "name"), WRONG)
def test_wrong_ones_are_named(backend: Callable[..., Any], profile: str, name: str, pack: Pack) -> None:
    report = verify(backend, pack, profile)
    assert report.count("wrong") > 0
    assert report.count("failed") == 0
    assert set(report.diagnoses) == {"quantize", "fake_quantize"}
    for found in report.diagnoses.values():
        assert all(name in [e.name for e in d.explanations] for d in found), str(report)
