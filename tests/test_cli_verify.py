"""`refquant pack` and `refquant verify`: pipes, every source of answers, exit statuses, one line for bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from refquant.cli import main
from refquant.conform.packs import level_one, read_pack

REFQUANT = [sys.executable, "-m", "refquant"]

KERNEL = """
import sys
from refquant.conform.operations import evaluate
from refquant.conform.protocol import serve


def right(request):
    return evaluate(request)


def ties_away(request):
    return evaluate(request, {"rounding": "half_away"})


def nothing(request):
    return None


if __name__ == "__main__":
    serve(globals()[sys.argv[1]], sys.stdin.buffer, lambda b: (sys.stdout.buffer.write(b), sys.stdout.flush()))
"""
ONNX = ["--profile", "onnx@21"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "kernel", raising=False)
    (tmp_path / "kernel.py").write_text(KERNEL)
    return tmp_path


def stream(*argv: str) -> bytes:
    return subprocess.run([*REFQUANT, "pack", "--stream", *argv], check=True, stdout=subprocess.PIPE).stdout


def kernel(name: str, requests: bytes) -> bytes:
    return subprocess.run(
        [sys.executable, "kernel.py", name], check=True, input=requests, stdout=subprocess.PIPE
    ).stdout


# ---- verify ---------------------------------------------------------------------------------------------------


def test_a_pipe(folder: Path) -> None:
    answers = kernel("ties_away", stream(*ONNX, "--ops", "requantize"))
    command = [*REFQUANT, "verify", "--stream", *ONNX, "--ops", "requantize"]
    done = subprocess.run(command, input=answers, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    assert b"\nexplained by: ties away" in done.stdout


def test_a_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["verify", *ONNX, "--ops", "quantize", "--command"]
    assert main([*argv, f"{sys.executable} kernel.py right"]) == 0
    assert "105 right" in capsys.readouterr().out
    assert main([*argv, f"{sys.executable} kernel.py ties_away"]) == 1
    assert "explained by: ties away" in capsys.readouterr().out
    assert main([*argv, "false", "--timeout", "5"]) == 1
    assert "ended with status 1" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "status"), [("right", 0), ("ties_away", 1), ("nothing", 1)])
def test_a_callable(name: str, status: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["verify", "--callable", f"kernel:{name}", *ONNX, "--ops", "quantize,dequantize"]
    assert main([*argv, "--json", "report.json"]) == status
    text = capsys.readouterr().out
    report = json.loads((folder / "report.json").read_text())
    assert report["conforms"] == (status == 0) == (text.splitlines()[-1].startswith("conforms to onnx@21"))
    assert set(report["operations"]) == {"quantize", "dequantize"}
    assert main([*argv, "--json", "-"]) == status
    assert json.loads(capsys.readouterr().out) == report
    if name == "nothing":
        assert report["counts"]["declined"] == sum(report["counts"].values()) > 0


def test_answers_in_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "answers").write_bytes(kernel("right", stream(*ONNX, "--ops", "dequantize,requantize")))
    argv = ["verify", "--answers", "answers", *ONNX]
    assert main([*argv, "--ops", "dequantize"]) == 0
    assert main(argv) == 1  # the rest has no answer
    assert "no answer" in capsys.readouterr().out
    assert main(["verify", "--answers", "answers", "--profile", "tflite-double@1", "--ops", "requantize"]) == 1
    assert "an answer to 'onnx@21/" in capsys.readouterr().out


def test_known_deviations_are_excused_and_stale_ones_are_not(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["verify", "--callable", "kernel:ties_away", *ONNX, "--ops", "quantize", "--known", "known"]
    (folder / "known").write_text("# ours\nquantize | ties away | the unit has no other mode\n")
    assert main(argv) == 0
    assert "excused" in capsys.readouterr().out
    (folder / "known").write_text("quantize | ties away | the unit\nquantize | ceil | long mended\n")
    assert main(argv) == 1
    assert "stale: no answer is explained by: quantize | ceil" in capsys.readouterr().out


# ---- pack -----------------------------------------------------------------------------------------------------


def test_a_pack_is_written_and_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", "--out", "pack"]) == 0
    count = len(level_one().tests)
    assert capsys.readouterr().out == f"written: pack, {count} tests\n"
    assert len(read_pack(folder / "pack").tests) == count
    assert main(["pack", "--out", "pack"]) == 0  # over it
    argv = ["verify", "--callable", "kernel:right", *ONNX, "--pack", "pack", "--ops", "dequantize"]
    assert main(argv) == 0
    (folder / "pack" / "tie.json").write_text("{}")
    assert main(argv) == 2
    assert "SHA-256" in capsys.readouterr().err


def test_a_pack_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack"]) == 0
    families, profiles = capsys.readouterr().out.split("\n\n")
    pack = level_one()
    assert [line.split()[0] for line in families.splitlines()] == list(pack.notes)
    assert [line.split()[0] for line in profiles.splitlines()] == list(pack.profiles)


# ---- bad input ------------------------------------------------------------------------------------------------

BAD = {
    "verify --callable kernel:right --profile onnx@99": "onnx@99",
    "verify --callable kernel:left --profile onnx@21": "left",
    "verify --callable kernel:__doc__ --profile onnx@21": "a function of a Request",
    "verify --callable colonel:right --profile onnx@21": "colonel",
    "verify --callable broken:right --profile onnx@21": "ZeroDivisionError",
    "verify --callable kernel:right --profile onnx@21 --ops quantise": "quantise",
    "verify --callable kernel:right --profile gemmlowp@1 --ops allocate": "no test of allocate",
    "verify --callable kernel:right --profile onnx@21 --pack nowhere": "manifest.json",
    "verify --callable kernel:right --profile onnx@21 --known nowhere": "No such file",
    "verify --callable kernel:right --profile onnx@21 --known bad": "OPERATION | DEVIATION | REASON",
    "verify --callable kernel:right --profile onnx@21 --known bytes": "UTF-8",
    "verify --command /nowhere/kernel --profile onnx@21": "/nowhere/kernel",
    "verify --answers nowhere --profile onnx@21": "No such file",
    "verify --answers bad --profile onnx@21": "refquant-1",
    "pack --stream": "--profile",
    "pack --stream --profile onnx@99": "onnx@99",
    "pack --stream --profile onnx@21 --out there": "--out",
    "pack --out bad": "a folder that can be written",
    "pack --pack nowhere": "manifest.json",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_line_and_status_2(line: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad").write_text('{"protocol": "refquant-0"}\n')
    (folder / "bytes").write_bytes(b"\xff\n")
    (folder / "broken.py").write_text("1 / 0\n")
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("refquant: error: ")
    assert err.count("\n") == 1
    assert BAD[line] in err


@pytest.mark.parametrize(
    "line",
    [
        "verify --profile onnx@21",
        "verify --command a --stream --profile onnx@21",
        "verify --stream",
        "verify --command a --profile onnx@21 --timeout 0",
        "verify --command a --profile onnx@21 --timeout nan",
        "pack --level 3",
    ],
)
def test_wrong_arguments_are_status_2(line: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(line.split())
