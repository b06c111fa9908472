"""Planted faults: level 1 kills every mutant, and every family is needed for it."""

import pytest

from refquant.conform.deviations import DEVIATIONS
from refquant.conform.mutants import MUTANTS, Mutant, kill_matrix, kills_by_family, needed
from refquant.conform.operations import OPERATIONS
from refquant.conform.packs import Pack, level_one


@pytest.fixture(scope="module")
def pack() -> Pack:
    return level_one()


@pytest.fixture(scope="module")
def matrix(pack: Pack) -> dict[Mutant, set[str]]:
    return kill_matrix(pack)


def test_the_catalogue_is_large_and_covers_every_operation() -> None:
    assert len(DEVIATIONS) >= 60
    assert {m.op for m in MUTANTS} == set(OPERATIONS)
    codes = {d.code for d in DEVIATIONS.values()}
    # D25, floats as codes, is out of scope; D27, machines that differ, is a pair of others
    assert codes == {f"D{n:02d}" for n in range(1, 29)} - {"D25", "D27"}


@pytest.mark.guarantee("Level 1 kills every mutant: each deviation, in each operation.", "exhaustive", "")
def test_level_one_kills_every_mutant(matrix: dict[Mutant, set[str]]) -> None:
    assert [m for m, families in matrix.items() if not families] == []


@pytest.mark.guarantee("Without any one family of cases some mutant survives level 1.", "exhaustive", "")
def test_every_family_is_needed(pack: Pack, matrix: dict[Mutant, set[str]]) -> None:
    assert [flag for flag, alone in needed(matrix, pack.notes).items() if not alone] == []


def test_notes_name_what_was_killed(pack: Pack, matrix: dict[Mutant, set[str]]) -> None:
    found = kills_by_family(matrix)
    assert {flag: dict(note["kills"]) for flag, note in pack.notes.items()} == {
        flag: dict(sorted(found[flag].items())) for flag in pack.notes
    }


def test_a_pack_without_a_family_lets_some_mutant_live(pack: Pack) -> None:
    rest = Pack(1, tuple(t for t in pack.tests if t.family in ("gradient", "budget")), pack.notes)
    found = kill_matrix(rest)
    assert found[Mutant("gradient", "floor")] == {"gradient"}
    assert not found[Mutant("solve_scale", "bound too high")]
