"""Diagnosis put to the test: faults are planted, tests of a pack are answered, and the fault must be named.

A planted fault counts as named if an explanation is it, or is proved to be the same function of the data.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from .deviations import DEVIATIONS, applicable
from .diagnose import diagnose_requests
from .diagnosis import Diagnosis, Names
from .operations import Request
from .packs import Asked, Pack
from .separate import agree, change_of, predict, separating
from .wire import digest_of, semantics_to_json

__all__ = ["MOST_ELEMENTS", "Examined", "examine", "names_it", "same_semantics", "up_to"]

MOST_ELEMENTS = 4096
"""Diagnosis looks at tests of an operation until they have so many elements."""

Outputs = Mapping[str, Any]


class Examined(NamedTuple):
    """What diagnosis said of a planted fault; named: it is among the explanations, or proved to be one of them."""

    planted: Names
    diagnosis: Diagnosis
    named: bool


def names_it(diagnosis: Diagnosis, planted: Iterable[str]) -> bool:
    """Whether an explanation, or one that is proved to be the same function, is the planted fault."""
    ways = (set(way) for e in diagnosis.explanations for way in (e.deviations, *e.same))
    return any(way == set(planted) for way in ways)


# ---- which tests are looked at together -----------------------------------------------------------------------


def same_semantics(request: Request) -> str:
    """The operation and the semantics but for widths and granularity: requests alike in this are diagnosed together.

    >>> from ..quant.spec import QuantSpec
    >>> specs = QuantSpec(8), QuantSpec(4), QuantSpec(8, rounding="floor")
    >>> eight, four, floor = (same_semantics(Request("quantize", spec, {})) for spec in specs)
    >>> eight == four, eight == floor
    (True, False)
    """
    data = semantics_to_json(request.spec, request.integer)
    data["spec"] = {n: x for n, x in data["spec"].items() if n not in ("bits", "signed", "granularity")}
    return f"{request.op} {digest_of(data)}"


def up_to(most: int, first: Sequence[Any], then: Iterable[Any], size: Callable[[Any], int]) -> list[Any]:
    """Items, smallest first within `first` and then within `then`, until their sizes reach `most`; one at least.

    >>> up_to(6, [3, 1], [5, 2], lambda n: n)
    [1, 3, 2]
    """
    chosen: list[Any] = []
    elements = 0
    for item in [*sorted(first, key=size), *sorted(then, key=size)]:
        if not chosen or elements + size(item) <= most:
            chosen.append(item)
            elements += size(item)
    return chosen


@lru_cache(maxsize=1)
def _groups(pack: Pack) -> dict[str, list[Asked]]:
    groups: dict[str, list[Asked]] = {}
    for test in pack.tests:
        for asked in test.asked:
            groups.setdefault(same_semantics(asked.request), []).append(asked)
    return groups


def _size(asked: Asked) -> int:
    return sum(a.size for a in asked.expected.outputs.values())


# ---- the examination ------------------------------------------------------------------------------------------


def examine(pack: Pack, op: str, planted: Names, most: int = MOST_ELEMENTS) -> Examined | None:
    """What diagnosis says of a backend with these deviations, from at most so many elements of a pack's tests.

    The tests are those of the first semantics under which the fault shows; None where it shows under none, as a pair
    that cancels or of which one deviation hides the other.

    >>> from .packs import level_one
    >>> examine(level_one(), "quantize", ("ties away",)).named
    True
    """
    change = change_of(planted)
    for key, group in _groups(pack).items():
        if not key.startswith(f"{op} "):
            continue
        if not all(applicable(group[0].request, DEVIATIONS[name]) for name in planted):
            continue
        answers = {id(a): predict(a.request, change) for a in group}
        usable = [a for a in group if answers[id(a)] is not None]
        shows = [a for a in usable if _shows(a, answers[id(a)], planted)]
        if shows:
            chosen = up_to(most, shows[:1], [a for a in usable if a is not shows[0]], _size)
            requests = [a.request for a in chosen]
            found = diagnose_requests(requests, [answers[id(a)] or {} for a in chosen])
            named = names_it(found, planted) or any(
                separating(requests, e.deviations, planted, 0) == (None, True) for e in found.explanations
            )
            return Examined(planted, found, named)
    return None


def _shows(asked: Asked, answer: Outputs | None, planted: Names) -> bool:
    """Whether an answer differs from the rule's, and from what fewer of the deviations would give."""
    fewer = [change_of(planted[:i] + planted[i + 1 :]) for i in range(len(planted))]
    return answer is not None and all(
        not agree(asked.request, predict(asked.request, change), answer).all() for change in fewer
    )
