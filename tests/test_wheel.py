"""The wheel holds the whole package, its data and its license, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
UNWANTED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "refquant-study")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """{name: content} of a wheel built from a copy of the checkout, tests and notebooks included."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = shutil.copytree(ROOT, folder / "checkout", ignore=UNWANTED)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_every_file_of_the_package_is_shipped_and_no_other(wheel: dict[str, bytes]) -> None:
    files = {path for path in (ROOT / "refquant").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    expected = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in files}
    shipped = {name: content for name, content in wheel.items() if ".dist-info/" not in name}
    assert sorted(shipped) == sorted(expected)
    assert shipped == expected


def test_types_and_zoo_data_are_shipped(wheel: dict[str, bytes]) -> None:
    assert "refquant/py.typed" in wheel
    assert [name for name in wheel if name.startswith("refquant/zoo/data/")]


def test_license_and_command_are_shipped(wheel: dict[str, bytes]) -> None:
    (license_text,) = (content for name, content in wheel.items() if name.endswith(".dist-info/licenses/LICENSE"))
    assert license_text == (ROOT / "LICENSE").read_bytes()
    (entry_points,) = (content for name, content in wheel.items() if name.endswith(".dist-info/entry_points.txt"))
    assert b"refquant = refquant.cli:main" in entry_points
