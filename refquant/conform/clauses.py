"""Which numbered clause each choice of the pipelines belongs to, so that a diagnosis says where to read."""

from collections.abc import Iterable

from .deviations import DEVIATIONS

__all__ = ["CLAUSES", "clauses_of"]

CLAUSES: dict[str, tuple[str, ...]] = {
    "Q1": ("nan", "infinity", "shape"),
    "Q2": ("operand", "scale", "quotient"),
    "Q3": ("zero_point_order",),
    "Q4": ("rounding",),
    "Q5": ("zero point",),
    "Q6": ("overflow", "grid", "clip"),
    "D1": ("dequantize", "difference"),
    "D2": ("result", "sign of zero"),
    "granularity": ("axis",),
    "gradient": ("inside", "scale gradient", "outside"),
    "R": (
        *(f"rule: {part}" for part in ("scale", "zero_point", "dtype", "with_zero", "least")),
        "exponent",
        "zero overflow",
    ),
    "N1": (
        "product",
        "accumulator_bits",
        "accumulator_overflow",
        "input zero point",
        "weight zero point",
        "padding",
        "window",
        "groups",
        "kernel",
        "digits",
    ),
    "N2": ("bias", "bias_rounding"),
    "N3": ("requantize", "factor", "multiplier", "high ties", "shift ties"),
    "N4": ("add", "zero point of a", "zero point of b"),
    "N5": ("sums of", "count", "sum", "division", "pool"),
    "M1": ("residual", "scales"),
    "M2": ("order", "terms"),
    "solution": ("solver", "bound"),
}
"""clause -> the choices that it speaks of (`operations.knobs`)."""

_CLAUSE = {choice: clause for clause, choices in CLAUSES.items() for choice in choices}


def clauses_of(deviations: Iterable[str]) -> list[str]:
    """The clauses that deviations break, in order.

    >>> clauses_of(["ties away", "wraps"])
    ['Q4', 'Q6']
    """
    return sorted(
        {_CLAUSE[choice] for name in deviations for choice in DEVIATIONS[name].change}, key=list(CLAUSES).index
    )
