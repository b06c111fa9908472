"""Small backends in C, JavaScript and Rust: the right ones conform, the wrong ones are named by the diagnosis.

A wrong version is chosen by the name of its deviation: a flag of the compiler, or an argument.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pytest

from refquant.conform.deviations import DEVIATIONS
from refquant.conform.packs import Pack, level_one
from refquant.conform.program import Program
from refquant.conform.verify import Report, verify

HERE = Path(__file__).parent
LEVEL1 = str(files("refquant.conform") / "level1")


@dataclass(frozen=True)
class Client:
    """tool: what builds or runs it.  command: from a folder and a deviation ("" for none) to words.  declined: the
    operations that it does not have."""

    tool: str
    profile: str
    command: Callable[[Path, str], list[str]]
    declined: frozenset[str]
    wrong: tuple[str, ...]


def c(folder: Path, deviation: str) -> list[str]:
    flags = [f"-D{deviation.upper().replace(' ', '_')}"] if deviation else []
    strict = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O2", "-ffp-contract=off"]
    target = str(folder / "kernel")
    subprocess.run(["gcc", *strict, *flags, str(HERE / "kernel.c"), "-lm", "-o", target], check=True)
    return [target]


def javascript(folder: Path, deviation: str) -> list[str]:
    return ["node", str(HERE / "backend.mjs"), deviation]


def rust(folder: Path, deviation: str) -> list[str]:
    target = folder.parent / "rust"  # built once for all tests
    flags = ["--release", "--offline", "--locked", "--quiet", "--target-dir", str(target)]
    environment = os.environ | {"RUSTFLAGS": "-D warnings"}
    subprocess.run(["cargo", "build", *flags], cwd=HERE / "rust", env=environment, check=True)
    return [str(target / "release" / "backend"), deviation, LEVEL1]


CLIENTS = {
    "C": Client(
        "gcc",
        "tflite-double@1",
        c,
        frozenset({"network"}),
        ("shift ties up", "padding with code 0", "ties to even"),
    ),
    "JavaScript": Client(
        "node",
        "onnx@21",
        javascript,
        frozenset(),
        ("reciprocal", "groups interleaved", "codes added"),
    ),
    "Rust": Client(
        "cargo",
        "seed-nearest@1",
        rust,
        frozenset({"range_parameters", "gradient", "solve_scale", "allocate"}),
        ("24-bit accumulators", "high digits alone", "residual in float32"),
    ),
}


@pytest.fixture(scope="module")
def pack() -> Pack:
    return level_one()


def report_of(name: str, deviation: str, pack: Pack, folder: Path) -> Report:
    """A right client is asked for everything, a wrong one where its deviation can show."""
    client = CLIENTS[name]
    ops = DEVIATIONS[deviation].ops if deviation else None
    if shutil.which(client.tool) is None:
        pytest.skip(f"no {client.tool} here")
    with Program(client.command(folder, deviation)) as backend:
        return verify(backend, pack, client.profile, ops=ops)


@pytest.mark.guarantee("backends in C, JavaScript and Rust conform to level 1 through the protocol", kind="checked")
@pytest.mark.parametrize("name", CLIENTS)
def test_a_right_client_conforms(name: str, pack: Pack, tmp_path: Path) -> None:
    report = report_of(name, "", pack, tmp_path)
    assert report.conforms, str(report)
    declined = CLIENTS[name].declined
    for op in {v.asked.request.op for v in report.verdicts}:
        right = sum(v.status == "right" for v in report.verdicts if v.asked.request.op == op)
        assert (right == 0) == (op in declined), op
    assert report.count("right") >= 0.9 * len([v for v in report.verdicts if v.asked.request.op not in declined])


@pytest.mark.guarantee("wrong backends in C, JavaScript and Rust are named by the diagnosis", kind="checked")
@pytest.mark.parametrize(
    ("name", "deviation"),
    [pytest.param(name, d, id=f"{name}, {d}") for name, client in CLIENTS.items() for d in client.wrong],
)
def test_a_wrong_client_is_named(name: str, deviation: str, pack: Pack, tmp_path: Path) -> None:
    report = report_of(name, deviation, pack, tmp_path)
    assert not report.conforms
    assert report.count("failed") == 0
    named = {op: [e.name for d in found for e in d.explanations] for op, found in report.diagnoses.items()}
    assert named
    assert all(deviation in names for names in named.values()), named
    assert f"explained by: {deviation}" in str(report)
