"""The roof: quick to import, complete, and the same for readers of types as at run time."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import refquant

HEAVY = {"scipy", "matplotlib", "tqdm", "threadpoolctl", "hypothesis"}


def loaded(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after the statement."""
    code = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def names_for_types(source: str) -> dict[str, str]:
    """{name: home} of the relative imports under `if TYPE_CHECKING:`."""
    guarded = [
        statement
        for node in ast.parse(source).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
    ]
    return {
        alias.asname or alias.name: statement.module or ""
        for statement in guarded
        if isinstance(statement, ast.ImportFrom) and statement.level == 1
        for alias in statement.names
    }


def test_import_is_light() -> None:
    assert loaded("import refquant") & (HEAVY | {"refquant"}) == {"refquant"}
    assert "tqdm" in loaded("import refquant, tqdm")  # a planted import is seen


@pytest.mark.parametrize("name", refquant.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(refquant, name) is not None
    assert name in dir(refquant)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        getattr(refquant, "quantise")  # noqa: B009 (a plain attribute would not pass mypy)


def test_types_and_table_agree() -> None:
    assert refquant.__file__ is not None
    assert names_for_types(Path(refquant.__file__).read_text(encoding="utf-8")) == refquant._HOME
    assert names_for_types("if TYPE_CHECKING:\n    from .quant.spec import A, B") == dict.fromkeys("AB", "quant.spec")
