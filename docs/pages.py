"""What the scripts of this folder share: results kept cell by cell, tables and plots of pages."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from refquant.report.style import STYLE, svg

HERE = Path(__file__).parent

Cell = dict[str, Any]


class Results:
    """Results by key, in a JSON file of this folder: a long run that is broken off goes on from there."""

    def __init__(self, name: str) -> None:
        self.path = HERE / name

    def load(self) -> dict[str, Cell]:
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}

    def save(self, key: str, cell: Cell) -> None:
        """Add one: read, written beside and renamed, so that a broken run leaves a whole file."""
        beside = self.path.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps({**self.load(), key: cell}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        beside.replace(self.path)


def table(head: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]) + "\n"


def spaced(head: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A table, and a blank line."""
    return table(head, rows) + "\n"


def draw(name: str, make: Callable[[Figure], None], size: tuple[float, float] = (7.2, 3.4), folder: Path = HERE) -> str:
    """Write a figure as NAME.svg, and show it."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size)
        make(figure)
        (folder / f"{name}.svg").write_text(svg(figure), encoding="utf-8")
    return f"![{name}]({name}.svg)\n\n"
