"""`refquant diagnose` from the line and from files; its exit status; what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from refquant.cli import main

QUANTIZE = ["diagnose", "quantize", "scale=1", "zero_point=0", "--profile", "onnx@21"]


def test_a_wrong_rule_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    line = [*QUANTIZE[:2], "x=[0.5, 1.5, 2.5, -0.5, 0.25]", *QUANTIZE[2:], "--outputs", "codes=[1, 2, 3, -1, 0]"]
    assert main(line) == 1
    said = capsys.readouterr().out
    assert "explained by: ties away" in said
    assert "4 of the 5" not in said
    assert "3 of the 3 lie exactly on ties" in said


def test_a_right_one_conforms(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUANTIZE[:2], "x=[0.5, 1.5]", *QUANTIZE[2:], "--outputs", "codes=[0, 2]"]) == 0
    assert "conforms, all 2 elements" in capsys.readouterr().out


def test_files_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.arange(-40, 40, dtype=np.float32) / 4
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "y.npz", q=np.floor(x / 0.5).astype(np.int8))
    inputs = [f"x={tmp_path / 'x.npy'}", "scale=0.5", "zero_point=0"]
    outputs = ["--outputs", f"codes={tmp_path / 'y.npz'}:q"]
    assert main(["diagnose", "quantize", *inputs, "--profile", "onnx@21", "--json", *outputs]) == 1
    found = json.loads(capsys.readouterr().out)
    assert ["floor"] in [e["deviations"] for e in found["explanations"]]
    assert found["elements"] == 80
    np.savetxt(tmp_path / "x.csv", x[None], delimiter=",")
    np.savetxt(tmp_path / "y.csv", np.rint(x / 0.5)[None], delimiter=",")
    assert (
        main(
            [
                "diagnose",
                "quantize",
                f"x={tmp_path / 'x.csv'}",
                "scale=0.5",
                "zero_point=0",
                "--profile",
                "onnx@21",
                "--outputs",
                f"codes={tmp_path / 'y.csv'}",
            ]
        )
        == 0
    )


def test_a_public_report_from_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    scales = [
        "input_scale=0.05296124517917633",
        "weight_scale=0.024093778803944588",
        "output_scale=0.11484327912330627",
    ]
    line = ["diagnose", "requantize", "acc=[585]", "zero_point=-126", *scales, "--outputs", "codes=[-120]"]
    assert main([*line, "--profile", "tflite-double@1"]) == 1
    assert "explained by: shift truncates" in capsys.readouterr().out
    assert main([*line, "--profile", "onnx@21"]) == 0


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (["x=[0.5]", "scale=1", "--outputs", "codes=[0]"], "inputs x, scale"),
        (["x=[0.5]", "x=[1]", "scale=1", "zero_point=0", "--outputs", "codes=[0]"], "each name once"),
        (["x=half", "scale=1", "zero_point=0", "--outputs", "codes=[0]"], "a number, a list"),
        (["x=[0.5]", "scale=1", "zero_point=0.5", "--outputs", "codes=[0]"], "integers"),
        (["x=[0.5]", "scale=1", "zero_point=0", "--outputs", "kodes=[0]"], "outputs kodes"),
        (["x=[0.5]", "scale=1", "zero_point=0", "--options", "[", "--outputs", "codes=[0]"], "an object in JSON"),
        (["x=[[0.5], [1, 2]]", "scale=1", "zero_point=0", "--outputs", "codes=[0]"], "a number, a list"),
        (["x=[0.5]", "scale=-1", "zero_point=0", "--outputs", "codes=[0]"], "scale"),
        (["x=[0.5]", "scale=[1, 2]", "zero_point=0", "--outputs", "codes=[0]"], "scale"),
        (["x=none.npy", "scale=1", "zero_point=0", "--outputs", "codes=[0]"], "none.npy"),
    ],
)
def test_bad_input_is_status_two(line: list[str], fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "quantize", *line, "--profile", "onnx@21"]) == 2
    assert fault in capsys.readouterr().err


def test_a_profile_that_does_not_speak_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["diagnose", "average_pool", "x=[[[[1]]]]", "zero_point=0", "--outputs", "codes=[1]"]
    assert main([*line, "--profile", "onnx@21"]) == 2
    assert "tflite-double@1" in capsys.readouterr().err
