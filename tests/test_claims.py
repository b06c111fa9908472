"""How docs/make_claims.py judges: verdicts from intervals over seeds, tables read, tests named that exist."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def docs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(DOCS))
    before = set(sys.modules)
    import claims_cases  # type: ignore[import-not-found]
    import claims_document  # type: ignore[import-not-found]

    yield claims_cases, claims_document
    for name in set(sys.modules) - before:
        if name.startswith("claims_"):
            del sys.modules[name]


def test_a_case_is_for_or_against_only_beyond_students_interval(docs: Any) -> None:
    Case = docs[0].Case
    # three values: mean +- 2.920 s / sqrt(3); with s = 1 the half width is 1.686
    assert np.allclose(Case("a", (-3.0, -2.0, -1.0)).interval(), (-2.0, -2 - 1.6859, -2 + 1.6859), atol=1e-3)
    assert [Case("a", v).sign() for v in ((-3.0, -2.0, -1.0), (-2.6, -1.6, -0.6), (3.0, 2.0, 1.0))] == [-1, 0, 1]
    assert [Case("a", (v,)).sign() for v in (-0.1, 0.0, 0.1)] == [-1, 0, 1]  # no noise is known
    assert Case("net W2", (np.log(2.0),)).text() == "net W2 2.00"
    assert Case("net W2", (-0.25,), ratio=False).text() == "net W2 -0.25"


def test_one_case_against_refutes_one_without_sign_withholds(docs: Any) -> None:
    Case, Claim = docs[0].Case, docs[0].Claim
    cases = {sign: Case("a", (float(sign),)) for sign in (-1, 0, 1)}

    def verdict(*signs: int) -> str:
        return str(Claim("P", "where", "claim", "figure", tuple(cases[s] for s in signs)).verdict())

    assert verdict(-1, -1) == "holds"
    assert verdict(-1, -1, 1) == verdict(0, 1) == "does not hold"
    assert verdict(-1, 0) == verdict(0) == "not separable from noise"
    assert verdict() == "not measured yet"


def test_minima_and_tables_by_hand(docs: Any) -> None:
    assert [docs[0].minima(row) for row in ([3, 2, 1], [1, 2, 1], [2, 1, 3, 0, 5], [1])] == [1, 2, 2, 1]
    text = "## One\n\nwords\n\n| a | b |\n|---|---|\n| x | 3 % |\n\n## Two\n\n| a |\n|---|\n| y |\n"
    assert docs[0].rows_of(text, "One") == [{"a": "x", "b": "3 %"}]
    assert docs[0].number("3 %") == 3.0


def test_seeds_are_paired_and_a_missing_one_leaves_the_case_out(docs: Any) -> None:
    cells = {
        f"kind/net/{setting}/{seed}": {"v": v + seed} for setting, v in (("a", 1.0), ("b", 2.0)) for seed in range(3)
    }
    (case,) = docs[0].between(cells, "kind", "a", "b", docs[0].at("v"))
    assert np.allclose(case.values, np.log([1 / 2, 2 / 3, 3 / 4]))
    del cells["kind/net/b/1"]
    assert docs[0].between(cells, "kind", "a", "b", docs[0].at("v")) == ()


def test_a_test_that_is_not_there_is_noticed(docs: Any) -> None:
    assert docs[1].pinned("", DOCS) == ""
    name = "test_claims.py::test_minima_and_tables_by_hand"
    assert docs[1].pinned(name, DOCS) == f"`{name}`"
    with pytest.raises(ValueError, match="no such test"):
        docs[1].pinned(f"{name}_", DOCS)


def test_the_document_names_every_claim_and_leaves_nothing_unmeasured() -> None:
    text = (DOCS / "claims.md").read_text(encoding="utf-8")
    assert "not measured yet" not in text
    assert all(f"| {paper} |" in text for paper in ("LAPQ", "LAPQ, geometry", "AdaQuant", "BRECQ", "Multipoint"))


def test_blocks_err_less_than_layers_and_the_network_at_once_is_optimized_too_little(
    docs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BRECQ's granularities, 2-bit weights of the resnet, 32 images, 60 steps a part; three seeds.

    Spare error 0.095, 0.070, 0.093 by blocks, 0.113, 0.080, 0.109 by layers; on the calibration images themselves
    0.028, 0.026, 0.026 by blocks and 0.354, 0.359, 0.297 at once, where overfitting would have these the lower ones.
    """
    import claims_cells  # type: ignore[import-not-found]

    monkeypatch.setattr(claims_cells, "STEPS", 60)
    for seed in range(3):
        layer, block, network = (
            claims_cells.parts_cell("resnet", f"{granularity}-32", seed)
            for granularity in ("layer", "block", "network")
        )
        assert block["spare"]["error"] < 0.95 * layer["spare"]["error"]
        assert network["seen"]["error"] > 2 * block["seen"]["error"]


def test_channels_chosen_by_output_error_diverge_less_than_random_ones(docs: Any) -> None:
    """Multipoint on mlp and cnn, W2A8, 1.25 times the operations, three seeds: 0.36 and 0.49 times as much."""
    import claims_cells

    for network in ("mlp", "cnn"):
        for seed in range(3):
            cell = claims_cells.points_cell(network, "1.25", seed)
            chance = [one["divergence"] for one in cell["random"]]
            assert cell["ranked"]["divergence"] < 0.75 * np.mean(chance)
            assert min(one["operations"] for one in cell["random"]) >= cell["ranked"]["operations"]
