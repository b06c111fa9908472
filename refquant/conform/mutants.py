"""Planted faults: every deviation in every operation, and which families of cases notice it.

A mutant is the product's own pipeline with one choice changed (`deviations`), so it is wrong in exactly one way.  A
suite is as good as the share of mutants that it kills; a family is needed if some mutant dies by it alone.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from .deviations import DEVIATIONS, applicable
from .judge import faults
from .operations import OPERATIONS, evaluate
from .packs import Asked, Pack

__all__ = ["MUTANTS", "Mutant", "kill_matrix", "kills_by_family", "matrix_text", "needed", "notices"]


class Mutant(NamedTuple):
    """One operation with one deviation."""

    op: str
    deviation: str


MUTANTS: tuple[Mutant, ...] = tuple(
    Mutant(op, name) for op in OPERATIONS for name, deviation in DEVIATIONS.items() if op in deviation.ops
)
"""All mutants, operation by operation."""

Matrix = Mapping[Mutant, Collection[str]]
"""mutant -> the families that kill it."""


def notices(asked: Asked, change: Mapping[str, Any]) -> bool:
    """Whether a request finds fault with a backend that makes these choices; a crash is noticed.

    >>> import numpy as np
    >>> from .judge import Expected
    >>> from .operations import QuantSpec, Request
    >>> request = Request("quantize", QuantSpec(8), {"x": np.array([0.5]), "scale": 1.0, "zero_point": 0})
    >>> asked = Asked(request, Expected({"codes": np.array([0])}), ())
    >>> notices(asked, {"rounding": "half_up"}), notices(asked, {"rounding": "half_even"})
    (True, False)
    """
    try:
        return bool(faults(asked.request, asked.expected, evaluate(asked.request, change)))
    except (ArithmeticError, ValueError, IndexError):
        return True


def kill_matrix(pack: Pack, progress: Callable[[int], object] | None = None) -> dict[Mutant, set[str]]:
    """The families that kill each mutant; a mutant without any survives the pack.

    progress: called with 1 after each test.
    """
    found: dict[Mutant, set[str]] = {mutant: set() for mutant in MUTANTS}
    for test in pack.tests:
        for asked in test.asked:
            op = asked.request.op
            for name, deviation in DEVIATIONS.items():
                if op not in deviation.ops or test.family in found[Mutant(op, name)]:
                    continue
                if applicable(asked.request, deviation) and notices(asked, deviation.change):
                    found[Mutant(op, name)].add(test.family)
        if progress is not None:
            progress(1)
    return found


def needed(matrix: Matrix, families: Iterable[str]) -> dict[str, list[Mutant]]:
    """For each family the mutants that no other kills.

    >>> needed({Mutant("quantize", "floor"): ["tie"], Mutant("quantize", "wraps"): ["tie", "nan"]}, ["tie", "nan"])
    {'tie': [Mutant(op='quantize', deviation='floor')], 'nan': []}
    """
    return {flag: [m for m, by in matrix.items() if set(by) == {flag}] for flag in families}


def kills_by_family(matrix: Matrix) -> dict[str, dict[str, list[str]]]:
    """family -> operation -> deviations: the notes of packs.

    >>> kills_by_family({Mutant("quantize", "floor"): ["tie"]})
    {'tie': {'quantize': ['floor']}}
    """
    found: dict[str, dict[str, list[str]]] = {}
    for mutant, families in matrix.items():
        for flag in sorted(families):
            found.setdefault(flag, {}).setdefault(mutant.op, []).append(mutant.deviation)
    return found


def matrix_text(matrix: Matrix, families: Collection[str]) -> str:
    """The matrix family x mutant as a Markdown table of counts an operation, and the totals.

    >>> print(matrix_text({Mutant("quantize", "floor"): ["tie"], Mutant("quantize", "wraps"): []}, ["tie"]))
    | family | quantize | alone |
    |---|---|---|
    | tie | 1 | 1 |
    | any | 1 of 2 | |
    """
    ops = list(dict.fromkeys(m.op for m in matrix))
    alone = needed(matrix, families)
    lines = [f"| family | {' | '.join(ops)} | alone |", "|---" * (len(ops) + 2) + "|"]
    for flag in families:
        counts = [sum(flag in by for m, by in matrix.items() if m.op == op) for op in ops]
        lines.append(f"| {flag} | {' | '.join(str(n or '') for n in counts)} | {len(alone[flag])} |")
    dead = [
        f"{sum(bool(by) for m, by in matrix.items() if m.op == op)} of {sum(m.op == op for m in matrix)}" for op in ops
    ]
    return "\n".join([*lines, f"| any | {' | '.join(dead)} | |"])
