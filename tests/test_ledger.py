"""The ledger of guarantees: what the tests' marks and the proofs' headings say, kept in the package as data.

`python tests/test_ledger.py` writes it anew; the test says when that is due.  A row holds as far as its tests pass,
and every run of the suite runs them.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEDGER = ROOT / "refquant" / "ledger.json"
KINDS = ("proved", "exhaustive", "sampled", "checked", "second opinion")


def marks(source: str, where: str) -> Iterator[dict[str, str]]:
    """A row for each test that carries a guarantee."""
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.guarantee":
                given = [*zip(("statement", "kind", "clauses"), mark.args, strict=False)]
                given += [(str(k.arg), k.value) for k in mark.keywords]
                named = {name: ast.literal_eval(value) for name, value in given}
                assert node.name.startswith("test_"), f"{where}: {node.name} is not run"
                yield {
                    "statement": named["statement"],
                    "kind": named["kind"],
                    "clauses": named.get("clauses", ""),
                    "where": f"{where}::{node.name}",
                }


def sentences(comment: str) -> str:
    """The first paragraphs of a comment, up to the first that ends a sentence: a formula may stand between two."""
    text = ""
    for paragraph in re.split(r"\n# *\n", comment):
        text += " " + " ".join(re.sub(r"^#", "", paragraph, flags=re.M).split())
        if text.endswith((".", ".)")):
            break
    return text.strip()


def headings(source: str, where: str) -> Iterator[dict[str, str]]:
    """A row for each lemma and theorem of a proof: its name and what it states."""
    for title in re.finditer(
        r"^# %% ((?:Lemma|Theorem|Corollary)[^(\n]*)\(([^)]*)\)\.\s+((?:.*\n)(?:#(?! %%).*\n)*)", source, re.M
    ):
        yield {
            "statement": f"{title[2]}: {sentences(title[3])}",
            "kind": "proved",
            "clauses": "",
            "where": f"{where}: {title[1].strip()}",
        }


def ledger(root: Path) -> list[dict[str, str]]:
    """Every row, by kind and then by place."""
    rows = []
    for path in sorted(root.glob("tests/**/test_*.py")):
        rows += list(marks(path.read_text(encoding="utf-8"), path.relative_to(root).as_posix()))
    for path in sorted(root.glob("proofs/[0-9]*.py")):
        rows += list(headings(path.read_text(encoding="utf-8"), path.relative_to(root).as_posix()))
    assert all(row["kind"] in KINDS for row in rows), f"kinds are {', '.join(KINDS)}"
    return sorted(rows, key=lambda row: (KINDS.index(row["kind"]), row["where"], row["statement"]))


def text(rows: list[dict[str, str]]) -> str:
    return json.dumps(rows, indent=1) + "\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for folder in ("tests", "proofs"):
        (tmp_path / folder).mkdir()
    return tmp_path


def test_the_ledger_is_what_the_tests_and_proofs_say() -> None:
    assert LEDGER.read_text(encoding="utf-8") == text(ledger(ROOT)), "run: python tests/test_ledger.py"


def test_every_kind_is_there_and_no_statement_twice() -> None:
    rows = ledger(ROOT)
    assert {row["kind"] for row in rows} == set(KINDS)
    statements = [row["statement"] for row in rows]
    assert len(set(statements)) == len(statements)


def test_every_lemma_of_every_proof_is_in_it() -> None:
    for path in ROOT.glob("proofs/[0-9]*.py"):
        source = path.read_text(encoding="utf-8")
        titles = re.findall(r"^# %% (?:Lemma|Theorem|Corollary)", source, re.M)
        assert len(list(headings(source, ""))) == len(titles), path.name


def test_a_new_mark_and_a_new_lemma_change_it(tree: Path) -> None:
    assert ledger(tree) == []
    mark = '@pytest.mark.guarantee("One is one", kind="exhaustive", clauses="Q1")\n'
    (tree / "tests" / "test_a.py").write_text(f"{mark}def test_one() -> None:\n    pass\n")
    (tree / "proofs" / "1_b.py").write_text("# %% Lemma 1 (two).  Two is two.  Proof: it is.\nassert 2 == 2\n")
    assert [(row["kind"], row["statement"], row["where"]) for row in ledger(tree)] == [
        ("proved", "two: Two is two. Proof: it is.", "proofs/1_b.py: Lemma 1"),
        ("exhaustive", "One is one", "tests/test_a.py::test_one"),
    ]


def test_statements_of_proofs_are_whole_sentences() -> None:
    proved = [row for row in ledger(ROOT) if row["kind"] == "proved"]
    assert [row["statement"] for row in proved if not row["statement"].endswith((".", ".)"))] == []
    text = "# %% Lemma 1 (sum).  With a = 1,\n#\n#     a + a\n#       = 2,\n#\n# as is known.\n#\n# Proof.  Count.\n"
    assert [row["statement"] for row in headings(text, "")] == ["sum: With a = 1, a + a = 2, as is known."]


def test_an_unknown_kind_is_refused(tree: Path) -> None:
    mark = '@pytest.mark.guarantee("One is one", kind="certain")\n'
    (tree / "tests" / "test_a.py").write_text(f"{mark}def test_one() -> None:\n    pass\n")
    with pytest.raises(AssertionError, match="kinds are"):
        ledger(tree)


if __name__ == "__main__":
    LEDGER.write_text(text(ledger(ROOT)), encoding="utf-8")
