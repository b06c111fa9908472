"""How backends differ: single deviations, as changed choices of the pipelines, with where they hurt someone.

The rows are data (`deviations.toml`).  As a mutant a row is a planted fault that a suite should notice; as an
explanation it is what diagnosis tries.
"""

import itertools
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from ..errors import FileError, complaint
from ..quant.integer_spec import IntegerSpec
from ..quant.spec import QuantSpec
from .operations import OPERATIONS, Request, knobs

__all__ = ["DEVIATIONS", "Deviation", "applicable", "pairs", "read_deviations"]


@dataclass(frozen=True)
class Deviation:
    """One way to be wrong.

    code: of the catalogue.  ops: where it can be.  change: choices and their values.  where: choices that the
    semantics must have made for it to make sense.  story, threads: evidence.
    """

    code: str
    ops: tuple[str, ...]
    change: Mapping[str, Any]
    story: str
    threads: tuple[str, ...] = ()
    where: Mapping[str, Any] = field(default_factory=dict)


def read_deviations(text: str) -> dict[str, Deviation]:
    """The deviations of a TOML text: a table `groups` of operations, and rows `deviation`.

    Raises FileError for unknown fields, operations and choices, and for a name given twice.

    >>> read_deviations("groups = {}") == {}
    True
    """
    data = tomllib.loads(text)
    groups, rows = data.get("groups", {}), data.get("deviation", [])
    known = set(knobs(QuantSpec(8), IntegerSpec()))
    found: dict[str, Deviation] = {}
    for row in rows:
        name = row.get("name", "?")
        ops = tuple(dict.fromkeys(o for item in row.get("ops", []) for o in groups.get(item, [item])))
        faults = [
            *(f"field {key}" for key in set(row) - {"name", "code", "ops", "change", "where", "story", "threads"}),
            *(f"operation {op}" for op in set(ops) - set(OPERATIONS)),
            *(f"choice {key}" for key in {*row.get("change", {}), *row.get("where", {})} - known),
            *(["a name given twice"] if name in found else []),
            *([] if ops and row.get("change") and row.get("story") else ["no ops, change or story"]),
        ]
        if faults:
            raise FileError(complaint(", ".join(sorted(faults)), "none of these", f"deviation {name!r}"))
        threads, where = tuple(row.get("threads", ())), row.get("where", {})
        found[name] = Deviation(row["code"], ops, row["change"], row["story"], threads, where)
    return found


DEVIATIONS = read_deviations((files(__package__) / "deviations.toml").read_text(encoding="utf-8"))
"""name -> deviation."""


def applicable(request: Request, deviation: Deviation) -> bool:
    """Whether a deviation can show in this operation and is not what the semantics ask for.

    >>> request = Request("quantize", QuantSpec(8, rounding="half_away"), {})
    >>> [applicable(request, DEVIATIONS[name]) for name in ("ties away", "ties to even", "kernel flipped")]
    [False, True, False]
    """
    base = knobs(request.spec, request.integer)
    possible = request.op in deviation.ops and all(base[name] == value for name, value in deviation.where.items())
    return possible and any(base[name] != value for name, value in deviation.change.items())


def pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of deviations that change different choices.

    >>> pairs(["floor", "ceil", "wraps"])
    [('floor', 'wraps'), ('ceil', 'wraps')]
    """
    both = itertools.combinations(names, 2)
    return [(a, b) for a, b in both if not set(DEVIATIONS[a].change) & set(DEVIATIONS[b].change)]
