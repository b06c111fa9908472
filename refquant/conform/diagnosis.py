"""A diagnosis as a value: what explains a backend's answers, what is refuted, what to try next."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .deviations import DEVIATIONS
from .wire import array_to_json

__all__ = ["Diagnosis", "Explanation", "Names", "NextInput", "short"]

Array = NDArray[Any]
Names: TypeAlias = tuple[str, ...]
"""The names of deviations that act together."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """Deviations that act together.

    explained: wrong elements that they give.  broken: right elements that they would not give.  same: other
    explanations that are proved to be the same function of the data at these parameters.
    """

    deviations: Names
    explained: int
    broken: int
    same: tuple[Names, ...] = ()

    @property
    def name(self) -> str:
        """The deviations' names, joined."""
        return " with ".join(self.deviations)

    @property
    def story(self) -> str:
        """What they do, in words."""
        return "; and ".join(DEVIATIONS[name].story for name in self.deviations)

    @property
    def threads(self) -> tuple[str, ...]:
        """Public reports of them."""
        return tuple(dict.fromkeys(t for name in self.deviations for t in DEVIATIONS[name].threads))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "deviations": list(self.deviations),
            "story": self.story,
            "explained": self.explained,
            "broken": self.broken,
            "same": [list(names) for names in self.same],
            "threads": list(self.threads),
        }


@dataclass(frozen=True, eq=False)
class NextInput:
    """Inputs that tell explanations apart: `inputs` by name, and what each explanation would give."""

    inputs: Mapping[str, Array]
    answers: Mapping[str, Mapping[str, Array]]


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What answers show.

    conforms: every element is right.  explanations: those that give every element, best known first; none if no
    deviation or pair of the catalogue does.  partial: those that come closest, when none explains all. refuted:
    single deviations with the element that rules each out alone.  next_input: what tells the first two explanations
    apart, None where there is one, or where none was found; for a layer, an accumulator.  notes: what the wrong
    elements have in common.
    """

    op: str
    elements: int
    wrong: int
    explanations: tuple[Explanation, ...]
    partial: tuple[Explanation, ...]
    refuted: Mapping[str, str]
    next_input: NextInput | None
    notes: tuple[str, ...]

    @property
    def conforms(self) -> bool:
        """Whether every element is right."""
        return self.wrong == 0

    @property
    def verdict(self) -> str:
        """`conforms`, `explained`, `ambiguous` (several explanations are left) or `none`."""
        if self.conforms:
            return "conforms"
        return {0: "none", 1: "explained"}.get(len(self.explanations), "ambiguous")

    def to_json(self) -> dict[str, Any]:
        """Plain data: the verdict, every explanation, what is refuted, the next input."""
        follow = self.next_input
        return {
            "operation": self.op,
            "verdict": self.verdict,
            "elements": self.elements,
            "wrong": self.wrong,
            "explanations": [e.to_json() for e in self.explanations],
            "partial": [e.to_json() for e in self.partial],
            "refuted": dict(self.refuted),
            "next_input": None
            if follow is None
            else {
                "inputs": {name: array_to_json(a) for name, a in follow.inputs.items()},
                "answers": {
                    name: {n: array_to_json(a) for n, a in outputs.items()} for name, outputs in follow.answers.items()
                },
            },
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        head = f"{self.op}: {self.wrong} of {self.elements} elements are wrong"
        lines = [f"{self.op}: conforms, all {self.elements} elements are right" if self.conforms else head]
        lines += [f"  {note}" for note in self.notes]
        for e in self.explanations:
            lines.append(f"explained by: {e.name} ({e.story})")
            lines += [f"  the same function here: {' with '.join(names)}" for names in e.same]
            lines += [f"  reports: {', '.join(e.threads)}"] if e.threads else []
        if not self.conforms and not self.explanations:
            closest = "; closest:" if self.partial else ", or a part"
            lines.append(f"none of the catalogue's deviations, and no pair of them, explains all of it{closest}")
            lines += [f"  {e.name}: explains {e.explained} of {self.wrong}, breaks {e.broken}" for e in self.partial]
        if self.verdict == "ambiguous" and self.next_input is None:
            lines.append("no input that tells them apart was found")
        if self.next_input is not None:
            given = ", ".join(f"{name} = {short(a)}" for name, a in self.next_input.inputs.items())
            lines.append(f"to tell them apart, try {given}:")
            lines += [
                f"  {name}: {', '.join(f'{n} = {short(a)}' for n, a in answer.items())}"
                for name, answer in self.next_input.answers.items()
            ]
        return "\n".join(lines)


def short(a: Any) -> str:
    """A few elements in full, or what array it is.

    >>> short(np.float32([0.5])), short([1, 2])
    ('0x1.0000000000000p-1', '[1, 2]')
    """
    v = np.asarray(a)
    if v.size > 8:
        return f"{v.dtype} of shape {v.shape}"
    flat = [float(u).hex() if v.dtype.kind == "f" else str(u) for u in v.ravel().tolist()]
    return flat[0] if v.size == 1 else f"[{', '.join(flat)}]"
