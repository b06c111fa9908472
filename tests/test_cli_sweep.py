"""`refquant sweep`: verdicts, exit status, workers, resuming after a kill, and a cluster where there is one."""

import json
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refquant.cli import main

RULE = ["sweep", "--profile", "onnx@21", "--scale", "0.1", "--zero-point", "3"]
C_KERNEL = """
#include <math.h>
#include <stdint.h>
#include <stdio.h>
int main(void) {
    float x;
    while (fread(&x, 4, 1, stdin) == 1) {
        float q = ROUND(x / SCALE) + 3.0f;
        int32_t c = q < -128.0f ? -128 : q > 127.0f ? 127 : (int32_t)q;
        fwrite(&c, 4, 1, stdout);
    }
    return 0;
}
"""


def result(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any]]:
    status = main([*RULE, *argv, "--json", "-"])
    return status, json.loads(capsys.readouterr().out)


def compiled(folder: Path, rounding: str) -> str:
    """A kernel in C, as a filter."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("no gcc")
    (folder / "kernel.c").write_text(C_KERNEL)
    place = folder / rounding
    options = ["-O2", "-ffp-contract=off", f"-DROUND={rounding}", "-DSCALE=0.1f", "-o", str(place)]
    subprocess.run([gcc, *options, str(folder / "kernel.c"), "-lm"], check=True)
    return str(place)


def test_the_array_form_is_swept_where_no_backend_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = result(capsys, "--blocks", "1000:1002", "--jobs", "1")
    assert status == 0
    assert (found["conforms"], found["wrong"], found["inputs"]) == (True, 0, 2 << 20)
    assert found["backend"] == "refquant"


def test_processes_give_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (result(capsys, "--blocks", "1000:1004", "--jobs", jobs)[1] for jobs in ("1", "2"))
    assert one == two


def test_a_right_kernel_in_c_conforms_and_a_wrong_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--blocks", "1030:1032", "--jobs", "1", "--filter"]
    assert result(capsys, *place, compiled(tmp_path, "rintf"))[0] == 0
    status, found = result(capsys, *place, compiled(tmp_path, "roundf"))
    assert status == 1
    assert found["wrong"] > 0
    assert found["explanations"][0] == "ties away"
    assert main([*RULE, *place, compiled(tmp_path, "floorf")]) == 1
    assert "explained by: floor" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import sys; sys.exit(3)", "status 3"),
        ("import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()[:-1])", "4194303 bytes for 4194304"),
        ("import time; time.sleep(60)", "no end within 1 s"),
    ],
)
def test_a_filter_that_fails_is_an_error(script: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = f'{sys.executable} -c "{script}"'
    assert main([*RULE, "--blocks", "1000:1001", "--jobs", "1", "--timeout", "1", "--filter", command]) == 2
    assert message in capsys.readouterr().err


def test_a_program_that_speaks_the_protocol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from refquant.conform.operations import evaluate\n"
        "from refquant.conform.protocol import serve\n"
        "def write(line):\n"
        "    sys.stdout.buffer.write(line)\n"
        "    sys.stdout.buffer.flush()\n"
        "serve(lambda r: evaluate(r, {'infinity': 'zero'}), sys.stdin.buffer, write)\n"
    )
    only_infinity = ["--blocks", "2040:2041", "--jobs", "1"]  # the rest is NaN, which the rule refuses
    status, found = result(capsys, *only_infinity, "--command", f"{sys.executable} {program}")
    assert (status, found["inputs"], found["wrong"]) == (1, 1, 1)
    assert found["first"][0] == {"bits": "0x7f800000", "x": "inf", "got": "3", "should_be": "127"}
    assert found["explanations"] == ["infinity to zero"]


def test_a_function_of_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kernel_of_mine.py").write_text(
        "import numpy as np\n"
        "def answer(r):\n"
        "    q = r.inputs['x'] / r.inputs['scale']\n"
        "    return np.clip(np.rint(q) + r.inputs['zero_point'], -128, 127).astype(int)\n"
    )
    argv = ["--blocks", "1000:1003", "--callable", "kernel_of_mine:answer"]
    assert result(capsys, *argv, "--jobs", "1")[0] == 0
    assert result(capsys, *argv, "--jobs", "2")[0] == 0  # processes find it too


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, argv = tmp_path / "state", ["--blocks", "960:990", "--jobs", "1"]
    command = [sys.executable, "-m", "refquant", *RULE, *argv, "--state", str(state)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not state.exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    done = len(json.loads(state.read_text())["done"])
    assert 0 < done < 30
    assert result(capsys, *argv, "--state", str(state))[1] == result(capsys, *argv)[1]
    assert len(json.loads(state.read_text())["done"]) == 30


@pytest.mark.skipif(find_spec("distributed") is None, reason="no dask.distributed")
@pytest.mark.filterwarnings("ignore")  # its own
def test_a_dask_cluster_gives_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib import import_module

    distributed: Any = import_module("distributed")
    alone = result(capsys, "--blocks", "1000:1004", "--jobs", "1")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        assert result(capsys, "--blocks", "1000:1004", "--cluster", cluster.scheduler_address) == alone


@pytest.mark.parametrize(
    "argv",
    [
        ["--profile", "onnx@99", "--scale", "1"],
        ["--profile", "onnx@21", "--scale", "0"],
        ["--profile", "onnx@21", "--scale", "1", "--bits", "32"],
        ["--profile", "onnx@21", "--scale", "1", "--bits", "9"],
        ["--profile", "qonnx@1", "--scale", "1", "--op", "requantize"],
        ["--profile", "onnx@21", "--scale", "1", "--chunk", "3"],
        ["--profile", "onnx@21", "--scale", "1", "--callable", "no.such:thing"],
        ["--profile", "onnx@21", "--scale", "1", "--callable", "math:pi"],
        ["--profile", "onnx@21", "--scale", "1", "--filter", "/no/such/program", "--jobs", "1"],
    ],
)
def test_bad_arguments_are_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *argv]) == 2
    assert capsys.readouterr().err.startswith("refquant: error: ")


@pytest.mark.parametrize("argv", [["--blocks", "5:5"], ["--blocks", "0:9999"], ["--jobs", "0"], ["--scale", "x"]])
def test_arguments_that_are_none_leave_with_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*RULE, *argv])
    assert left.value.code == 2


def test_hexadecimal_scales_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    rule = result(capsys, "--blocks", "1000:1001", "--jobs", "1", "--scale", float(np.float32(0.1)).hex())[1]["rule"]
    assert rule["scale"] == float(np.float32(0.1)).hex()
