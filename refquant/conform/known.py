"""Known deviations: what a backend is allowed to do otherwise, one reasoned line each.

A line is `OPERATION | DEVIATION | REASON`; two deviations that act together are joined by ` with `.  A wrong answer is
excused only if the named deviation gives exactly that answer, so a second fault does not hide behind a first; a line
that excuses nothing is stale and an error.  Empty lines and lines that begin with # are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import FileError, complaint
from .deviations import DEVIATIONS
from .operations import OPERATIONS, Request
from .separate import agree, change_of, predict

__all__ = ["Known", "excuse", "read_known"]


@dataclass(frozen=True)
class Known:
    """One line: the deviations of an operation, and why they are accepted."""

    op: str
    deviations: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        return f"{self.op} | {' with '.join(self.deviations)} | {self.reason}"


def read_known(text: str, where: str = "known deviations") -> tuple[Known, ...]:
    """The lines of a file.

    Raises FileError for a line of other than three parts, an operation or deviation that does not exist or does not
    belong together, an empty reason, and a line given twice.

    >>> read_known("quantize | ties away | the unit has no other mode")[0].deviations
    ('ties away',)
    """
    found: list[Known] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        at, parts = f"{where}, line {number}", [part.strip() for part in line.split("|", 2)]
        if len(parts) != 3 or not parts[2]:
            raise FileError(complaint(repr(line), "OPERATION | DEVIATION | REASON", at))
        op, names = parts[0], tuple(parts[1].split(" with "))
        if op not in OPERATIONS:
            raise FileError(complaint(f"operation {op!r}", f"one of {', '.join(OPERATIONS)}", at))
        fitting = [name for name, deviation in DEVIATIONS.items() if op in deviation.ops]
        for name in names:
            if name not in fitting:
                raise FileError(complaint(f"deviation {name!r}", f"one of {', '.join(fitting)}", at))
        known = Known(op, names, parts[2])
        if any((k.op, k.deviations) == (op, names) for k in found):
            raise FileError(complaint(f"{parts[1]!r} for {op} twice", "once", at))
        found.append(known)
    return tuple(found)


def excuse(known: Sequence[Known], request: Request, answer: Any) -> Known | None:
    """The line that gives exactly this answer, None where there is none.

    >>> from ..quant.spec import QuantSpec
    >>> request = Request("quantize", QuantSpec(8), {"x": np.array([0.5]), "scale": 1.0, "zero_point": 0})
    >>> excuse(read_known("quantize | ties away | hardware"), request, {"codes": np.array([1])}).reason
    'hardware'
    """
    for line in known:
        if line.op != request.op:
            continue
        predicted = predict(request, change_of(line.deviations))
        if predicted is None:
            continue
        got = answer if isinstance(answer, Mapping) else {next(iter(predicted)): answer}
        if set(got) != set(predicted):
            continue
        arrays = {name: np.asarray(got[name]) for name in predicted}
        if any((a.dtype.kind in "iu") != (predicted[name].dtype.kind in "iu") for name, a in arrays.items()):
            continue
        if bool(agree(request, predicted, arrays).all()):
            return line
    return None
