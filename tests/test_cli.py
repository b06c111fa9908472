"""What every command shares: the ledger on the screen, and an output that takes no more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from refquant.cli import main

FULL = Path("/dev/full")


def run(output: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    with output.open("w") as file:
        command = [sys.executable, "-m", "refquant", *argv]
        return subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, check=False)


def test_guarantees_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--guarantees", "json"])
    rows = json.loads(capsys.readouterr().out)
    with pytest.raises(SystemExit, match="0"):
        main(["--guarantees"])
    table = capsys.readouterr().out
    assert all(row["statement"] in table and row["where"] in table for row in rows)


@pytest.mark.skipif(not FULL.exists(), reason="no device that is always full")
@pytest.mark.parametrize("argv", [["--guarantees"], ["--guarantees", "json"], ["--version"], ["--help"]], ids=" ".join)
def test_a_full_disk_is_one_line_and_status_2(argv: list[str]) -> None:
    done = run(FULL, *argv)
    assert (done.returncode, done.stderr) == (2, "refquant: error: No space left on device\n")


def test_a_reader_that_has_read_enough_hears_nothing() -> None:
    command = [sys.executable, "-m", "refquant", "--guarantees"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 2


def test_a_good_file_is_written_and_status_0(tmp_path: Path) -> None:
    assert run(tmp_path / "out", "--guarantees", "json").returncode == 0
    assert json.loads((tmp_path / "out").read_text())
