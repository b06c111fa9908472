"""All families of hard inputs, and their cases.

A case is a request without semantics: which profile's answer is asked for comes later (`requests.request_of`).
Families draw from seeded generators of their own, so that one more case in a family changes no other.
"""

import numpy as np

from . import cases_elements, cases_layers, cases_solvers
from .case import Case, Family

__all__ = ["FAMILIES", "cases"]

FAMILIES: dict[str, Family] = {**cases_elements.FAMILIES, **cases_layers.FAMILIES, **cases_solvers.FAMILIES}
"""flag -> family.  Whole networks are cases of their own (`networks`)."""


def cases(flag: str) -> list[Case]:
    """The cases of one family, always the same.

    >>> cases("nan")[0].op
    'quantize'
    """
    seed = int.from_bytes(flag.encode(), "little")
    return list(FAMILIES[flag].make(np.random.default_rng(seed)))
