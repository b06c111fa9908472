"""`refquant solve` on files: the library's answers, and one line for bad input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refquant as rq
from refquant.cli import main
from refquant.solve.heuristics import RULES

X = np.array([[0.9, -1.1, 2.0], [0.5, 0.25, -3.0]])


def answer(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, object]:
    assert main(["solve", *argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    np.savez("both.npz", x=X, y=X)
    np.savez("one.npz", x=X)
    np.savetxt("x.csv", X, delimiter=",")
    np.save("text.npy", np.array(["a"]))
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    np.save("error.npy", [[4.0, 1.0, 0.0]] * 2)
    np.save("row.npy", [1.0, 2.0])
    np.save("cost.npy", [[1.0, 2.0, 3.0]] * 2)
    return tmp_path


@pytest.mark.parametrize("place", ["x.npy", "x.csv", "one.npz", "both.npz:y"])
def test_scale(place: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "scale", place, "--bits", "2", "--narrow", "--granularity", "channel")
    spec = rq.QuantSpec(2, narrow=True, granularity=rq.PerChannel(0))
    assert found["value"] == rq.solve_scale(X, spec=spec).value.tolist()
    assert found["certified"] is True


def test_terms_and_allocations(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "terms", "x.npy", "--bits", "3", "--terms", "2")
    expected = rq.encode_terms(X, spec=rq.QuantSpec(3), terms=2)
    assert found["codes"] == expected.codes.tolist()
    assert found["scales"] == expected.scales.tolist()
    assert found["squared_error"] == float(np.sum((X - expected.decode(np.float64)) ** 2))
    chosen = answer(capsys, "allocate", "error.npy", "cost.npy", "--budget", "4")
    assert (chosen["value"], chosen["objective"]) == ([1, 1], 2.0)


def test_a_table_is_readable(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", "scale", "x.npy", "--bits", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ["value", "objective", "lower_bound", "certified", "evaluations", "zero_point"]
    assert [line.split()[0] for line in lines] == names


def test_rules_are_compared(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", "scale", "x.npy", "--bits", "3", "--granularity", "channel", "--compare"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["rule", "median"]
    assert [line.split()[0] for line in lines[1 : 1 + len(RULES)]] == list(RULES)
    rules: Any = answer(capsys, "scale", "x.npy", "--bits", "3", "--compare")["rules"]
    assert all(row["median_excess"] >= -1e-12 for row in rules)  # nothing is better than the optimum
    free = answer(capsys, "scale", "x.npy", "--bits", "3", "--zero-point", "free")
    assert free["certified"]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["scale", "none.npy"], "none.npy"),
        (["scale", "bad.npy"], "bad.npy"),
        (["scale", "text.npy"], "real numbers"),
        (["scale", "x.txt"], ".npy, .npz, .csv"),
        (["scale", "both.npz"], "FILE.npz:NAME"),
        (["scale", "both.npz:z"], "one of x, y"),
        (["scale", "x.npy", "--bits", "0"], "bits=0"),
        (["scale", "x.npy", "--granularity", "row"], "channel, tensor or group:N"),
        (["terms", "x.npy", "--terms", "0"], "terms"),
        (["allocate", "error.npy", "row.npy", "--budget", "4"], "shape"),
        (["allocate", "error.npy", "cost.npy", "--budget", "1"], "budget"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    argv: list[str], text: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", *argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert text in error
