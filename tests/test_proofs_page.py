"""The page of all proofs: everything is on it, formulas are set, nothing is fetched."""

import doctest
import html
import importlib.util
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PROOFS = sorted((ROOT / "proofs").glob("[0-9]*.py"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_proofs", ROOT / "docs" / "make_proofs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(script: ModuleType) -> str:
    made = script.page()
    assert isinstance(made, str)
    return made


def test_every_cell_of_every_proof_is_on_the_page(page: str) -> None:
    shown = html.unescape(re.sub(r"<[^>]*>", "", page))
    for path in PROOFS:
        assert f"<section id='{path.stem}'>" in page
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("assert"):
                assert line in shown, f"{path.name}: {line}"
    cells = sum(len(re.findall(r"^# %%", path.read_text(encoding="utf-8"), re.MULTILINE)) for path in PROOFS)
    assert page.count("<div class='cell'>") == cells + len(PROOFS)


def test_formulas_are_set(page: str) -> None:
    prose = re.sub(r"<pre>.*?</pre>|<code>.*?</code>", "", page, flags=re.DOTALL)
    assert not re.search(r"&lt;=|&gt;=|\balpha\b|\blambda\b", prose)
    assert prose.count("<sub>") > 50
    assert prose.count("<sup>") > 50


def test_the_page_is_well_formed_and_fetches_nothing(page: str) -> None:
    body = page.partition("<body>")[2].partition("</body>")[0]
    ET.fromstring(f"<body>{body}</body>")  # raises for tags that do not match
    assert not re.search(r"<(script|link|img|iframe)|https?://|url\(", page)


def test_examples_of_the_script(script: ModuleType) -> None:
    results = doctest.testmod(script)
    assert results.attempted >= 2
    assert results.failed == 0


def test_formulas_and_code_are_told_apart(script: ModuleType) -> None:
    assert script.mathematics("alpha_k <= 2^-(e+1)") == "<i>α</i><sub>k</sub> ≤ 2<sup>−(e+1)</sup>"
    assert script.mathematics("`alpha_k` half_even") == "<code>alpha_k</code> <code>half_even</code>"
