"""Each proof file is run: prose in its comments, lemmas in its assertions."""

import ast
import runpy
from pathlib import Path

import pytest

PROOFS = sorted((Path(__file__).parent.parent / "proofs").glob("[0-9]*.py"))


def run_proof(path: Path) -> None:
    """Run the file; a proof that asserts nothing, or asserts what is false, fails."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert any(isinstance(node, ast.Assert) for node in ast.walk(tree)), f"{path.name} asserts nothing"
    runpy.run_path(str(path))


def test_there_are_proofs() -> None:
    assert PROOFS, "proofs/ has no file that begins with a digit"


@pytest.mark.parametrize("path", PROOFS, ids=[path.stem for path in PROOFS])
def test_proof(path: Path) -> None:
    run_proof(path)


@pytest.mark.parametrize("planted", ["assert 1 + 1 == 3", "lemma = 1 + 1 == 2"], ids=["false", "nothing asserted"])
def test_a_planted_fault_is_reported(planted: str, tmp_path: Path) -> None:
    path = tmp_path / "0_planted.py"
    path.write_text(planted, encoding="utf-8")
    with pytest.raises(AssertionError):
        run_proof(path)
