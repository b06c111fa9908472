"""All families of hard inputs, and their cases.

A case is a request without semantics: which profile's answer is asked for comes later (`requests.request_of`).
Families draw from seeded generators of their own, so that one more case in a family changes no other.
"""

from typing import Any

import numpy as np

from . import cases_elements, cases_layers, cases_solvers, networks
from .case import Case, Family

__all__ = ["FAMILIES", "cases"]

FAMILIES: dict[str, Family] = {
    **cases_elements.FAMILIES,
    **cases_layers.FAMILIES,
    **cases_solvers.FAMILIES,
    **networks.FAMILIES,
}
"""flag -> family."""


def _key(case: Case) -> tuple[Any, ...]:
    """Equal for equal questions."""
    arrays = [
        (name, a.dtype.str, a.shape, a.tobytes()) for name, a in ((n, np.asarray(v)) for n, v in case.inputs.items())
    ]
    return case.op, case.bits, case.signed, case.granularity, repr(case.options), repr(case.semantics), tuple(arrays)


def cases(flag: str, level: int = 1) -> list[Case]:
    """The cases of one family, always the same; level 2 draws the random ones four times.

    >>> cases("nan")[0].op
    'quantize'
    """
    seed = int.from_bytes(flag.encode(), "little")
    draws = 1 if level == 1 else 4
    drawn = (case for n in range(draws) for case in FAMILIES[flag].make(np.random.default_rng([seed, n])))
    return list({_key(case): case for case in drawn}.values())
