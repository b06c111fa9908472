"""The C header of a pack: it holds the tests, a compiler takes it, and a kernel compiled with it is judged."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import refquant as rq
from refquant.cli import main
from refquant.conform.c_header import C_OPERATIONS, c_header
from refquant.conform.packs import Pack, level_one

RUNNER = """
#include <math.h>
#include <stdio.h>
#include "refquant_tests.h"

static int32_t clip(double k, const refquant_test *t) {
    return (int32_t)(k < t->qmin ? t->qmin : k > t->qmax ? t->qmax : k);
}

static int32_t code(float x, const refquant_test *t) { /* onnx@21 for float32 */
    return clip(ROUND(x / (float)t->scale) + t->zero_point, t);
}

static float real(int32_t q, const refquant_test *t) {
    return (float)((q - t->zero_point) * t->scale); /* a product of 9 or 17 bits and 24 bits is exact in double */
}

int main(void) {
    size_t wrong[4] = {0}, elements[4] = {0};
    for (size_t i = 0; i < refquant_test_count; i++) {
        const refquant_test *t = &refquant_tests[i];
        for (size_t j = 0; j < t->count; j++) {
            int bad = 0;
            if (t->op == RQ_QUANTIZE) bad = code(t->reals[j], t) != t->codes[j];
            if (t->op == RQ_FAKE_QUANTIZE) bad = real(code(t->reals[j], t), t) != t->values[j];
            if (t->op == RQ_DEQUANTIZE) bad = real(t->integers[j], t) != t->values[j];
            if (t->op == RQ_REQUANTIZE) /* onnx@21: the product in float */
                bad = clip(ROUND((float)t->integers[j] * (float)t->scale) + t->zero_point, t) != t->codes[j];
            wrong[t->op] += bad;
            elements[t->op]++;
        }
    }
    for (int op = 0; op < 4; op++) printf("%zu %zu\\n", wrong[op], elements[op]);
    return 0;
}
"""


@pytest.fixture(scope="module")
def pack() -> Pack:
    """Level 1 without what the runner's kernel has no clause for: codes that wrap, products before a difference."""
    whole = level_one()
    plain = {
        t.id
        for t in whole.tests
        if (
            (a := t.under("onnx@21")) is not None
            and (a.request.spec.overflow, a.request.spec.dequantize) == ("saturate", "scale-difference")
            and (a.request.spec.nan, a.request.spec.rounding) == ("raise", "half_even")
            and a.request.spec.quotient == "float32"
        )
        or (a is not None and a.request.op == "requantize" and a.request.spec.rounding == "half_even")
    }
    return Pack(1, tuple(t for t in whole.tests if t.id in plain), whole.notes)


def compiled(header: str, folder: Path, *options: str) -> list[tuple[int, int]]:
    """Wrong elements and all elements, an operation."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("no gcc")
    (folder / "refquant_tests.h").write_text(header)
    (folder / "runner.c").write_text(RUNNER)
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O1", "-ffp-contract=off", *options]
    subprocess.run([gcc, *flags, "-o", str(folder / "run"), str(folder / "runner.c"), "-lm"], check=True)
    out = subprocess.run([str(folder / "run")], capture_output=True, text=True, check=True).stdout
    rows = [tuple(map(int, line.split())) for line in out.splitlines()]
    return [(a, b) for a, b in rows]


def test_a_right_kernel_finds_no_fault_and_a_wrong_one_does(pack: Pack, tmp_path: Path) -> None:
    header = c_header(pack, "onnx@21")
    right = compiled(header, tmp_path, "-DROUND=rintf")
    assert [wrong for wrong, _ in right] == [0, 0, 0, 0]
    assert all(elements > 100 for _, elements in right)
    away = compiled(header, tmp_path, "-DROUND=roundf")
    assert all(wrong > 0 for op, (wrong, _) in zip(C_OPERATIONS, away, strict=True) if op != "dequantize")


def test_every_profile_compiles(tmp_path: Path) -> None:
    for profile in ("onnx@21", "onnxruntime-cpu@1.32", "tflite-double@1", "qonnx@1"):
        assert compiled(c_header(level_one(), profile), tmp_path, "-DROUND=rintf")


def test_the_header_holds_every_test_that_fits() -> None:
    header = c_header(level_one(), "onnx@21")
    named = re.findall(r'^    \{"([a-z0-9-]+)", RQ_([A-Z_]+), ', header, re.M)
    tests = {t.id: a for t, a in level_one().requests("onnx@21")}
    assert {op.lower() for _, op in named} == set(C_OPERATIONS)
    assert len(named) == len({i for i, _ in named}) > 200
    for name, op in named:
        assert tests[name].request.op == op.lower()
    left = [a.request for n, a in tests.items() if a.request.op in C_OPERATIONS and n not in {i for i, _ in named}]
    for r in left:  # several scales, a product of three, another type, or nothing in it
        several = any(np.ndim(r.inputs.get(n, 0)) for n in ("scale", "multiplier", "zero_point"))
        other = np.asarray(r.inputs.get("x", np.float32(0))).dtype != np.float32 or r.options.get("dtype") == "float16"
        empty = not np.size(next(iter(r.inputs.values())))
        assert several or other or empty or "input_scale" in r.inputs


def test_the_same_pack_gives_the_same_text() -> None:
    assert c_header(level_one(), "pytorch@2") == c_header(level_one(), "pytorch@2")


def test_no_test_is_an_error(pack: Pack) -> None:
    with pytest.raises(rq.ArgumentError, match="no test"):
        c_header(Pack(1, tuple(t for t in level_one().tests if t.family == "padding"), pack.notes), "onnx@21")
    with pytest.raises(rq.ArgumentError, match="onnx@99"):
        c_header(pack, "onnx@99")


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "refquant_tests.h"
    assert main(["pack", "--header", str(place), "--profile", "onnx@21"]) == 0
    assert place.read_text() == c_header(level_one(), "onnx@21")
    assert main(["pack", "--header", str(place)]) == 2
    assert main(["pack", "--header", str(tmp_path / "no" / "such.h"), "--profile", "onnx@21"]) == 2
    assert main(["pack", "--header", str(place), "--profile", "onnx@21", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("refquant: error: ") == 3
