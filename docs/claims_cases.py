"""Claims and their cases: figures from cells of docs/make_claims.py, intervals over seeds, verdicts.

A case is one network and setting with a value for each seed, such that the claim wants it below 0: the difference of
two numbers, or the logarithm of their ratio.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

POWERS = (2.0, 2.5, 3.0, 3.5, 4.0)
SEEDS = 3
BUDGETS = ("1.25", "1.5")
CONFIDENCE = 0.9

Cells = dict[str, dict[str, Any]]
HOLDS, FAILS, NOISE = "holds", "does not hold", "not separable from noise"


@dataclass(frozen=True)
class Case:
    """values: one a seed; a single one has no noise.  ratio: they are logarithms."""

    label: str
    values: tuple[float, ...]
    ratio: bool = True

    def interval(self) -> tuple[float, float, float]:
        """Mean and Student's 90 % interval over the seeds."""
        n, mean = len(self.values), float(np.mean(self.values))
        half = float(student.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(self.values, ddof=1) / n**0.5) if n > 1 else 0.0
        return mean, mean - half, mean + half

    def sign(self) -> int:
        """-1 as claimed, 1 the opposite, 0 neither."""
        _, low, high = self.interval()
        return int(low > 0) - int(high < 0)

    def text(self) -> str:
        mean, low, high = self.interval()
        if not self.ratio:
            return f"{self.label} {mean:+.2g}" + (f" ({low:+.2g} to {high:+.2g})" if len(self.values) > 1 else "")
        shown = [f"{np.exp(v):.2f}" if v < 7 else f"{np.exp(v):.0e}" for v in (mean, low, high)]
        return f"{self.label} {shown[0]}" + (f" ({shown[1]} to {shown[2]})" if len(self.values) > 1 else "")


@dataclass(frozen=True)
class Claim:
    """One row.  where: bits, images; quantity: what the figures are.  test: file::name of what pins it, or none."""

    paper: str
    where: str
    claim: str
    quantity: str
    cases: tuple[Case, ...]
    test: str = ""
    note: str = ""

    def verdict(self) -> str:
        """A claim holds if every case has its sign, does not if one has the other; else noise hides it."""
        signs = [case.sign() for case in self.cases]
        if not signs:
            return "not measured yet"
        if max(signs) > 0:
            return FAILS
        return HOLDS if max(signs) < 0 else NOISE

    def counts(self) -> str:
        signs = [case.sign() for case in self.cases]
        return " / ".join(str(signs.count(sign)) for sign in (-1, 1, 0))


# ---- figures --------------------------------------------------------------------------------------------------

Figure = Callable[[dict[str, Any]], float]


def seeds_of(cells: Cells, *key: str) -> list[dict[str, Any]]:
    found = [cells.get("/".join((*key, str(seed)))) for seed in range(SEEDS)]
    return [cell for cell in found if cell is not None] if None not in found else []


def cases_of(cells: Cells, kind: str, figure: Figure, ratio: bool = True, name: str = "W{}") -> tuple[Case, ...]:
    """One case for each network and setting of a kind, from a figure of each cell."""
    keys = sorted({key.rpartition("/")[0] for key in cells if key.startswith(f"{kind}/")}, reverse=True)
    found = []
    for key in keys:
        _, network, setting = key.split("/")
        some = seeds_of(cells, kind, network, setting)
        if some:
            label = f"{network} {name.format(setting.replace('-', 'A'))}".strip()
            found.append(Case(label, tuple(map(figure, some)), ratio))
    return tuple(found)


def between(cells: Cells, kind: str, one: str, other: str, figure: Figure, label: str = "") -> tuple[Case, ...]:
    """log(figure of one setting / of another), seed by seed, for each network that has both."""
    networks = sorted({key.split("/")[1] for key in cells if key.startswith(f"{kind}/")}, reverse=True)
    found = []
    for network in networks:
        a, b = (seeds_of(cells, kind, network, setting) for setting in (one, other))
        if a and b:
            values = tuple(float(np.log(figure(x) / figure(y))) for x, y in zip(a, b, strict=True))
            found.append(Case(f"{network}{label}", values))
    return tuple(found)


def log_ratio(a: Callable[[dict[str, Any]], float], b: Callable[[dict[str, Any]], float]) -> Figure:
    return lambda cell: float(np.log(a(cell) / b(cell)))


def at(*path: str) -> Figure:
    """What stands under these names."""

    def figure(cell: Any) -> float:
        for name in path:
            cell = cell[name]
        return float(cell)

    return figure


def minima(losses: list[float]) -> int:
    """How many strict local minima a row has, ends included."""
    row = [np.inf, *losses, np.inf]
    return sum(row[k - 1] > row[k] < row[k + 1] for k in range(1, len(row) - 1))


def rows_of(text: str, heading: str) -> list[dict[str, str]]:
    """The first table under a heading."""
    part = text.split(f"## {heading}", 1)[1].split("\n## ", 1)[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", part, re.M)]
    return [dict(zip(lines[0], row, strict=True)) for row in lines[2:]]


def number(text: str) -> float:
    return float(re.sub(r"[ %]", "", text))
