"""Named, versioned semantics: one row a profile, with its source and its known quirks."""

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import ArgumentError, complaint
from .spec import QuantSpec

__all__ = ["PROFILES", "Profile", "profile", "profiles"]


@dataclass(frozen=True)
class Profile:
    """One vendor's or paper's rule: where it is written, what surprises in it, and the spec it means.

    make(bits, signed, dtype, precision): dtype is that of the scale, precision an explicit attribute.
    """

    source: str
    quirk: str
    make: Callable[[int, bool, str, str | None], QuantSpec]


PROFILES: dict[str, Profile] = {
    "seed-floor@1": Profile(
        source="Zharikov and Sedova, Flexible continuous modification for post-training quantization, section 2",
        quirk="the brackets are read literally as floor: not idempotent on floats, bias -scale/2",
        make=lambda bits, signed, dtype, precision: QuantSpec(bits, signed, rounding="floor"),
    ),
    "seed-nearest@1": Profile(
        source="the same, with the rounding of the literature it builds on",
        quirk="ties to even",
        make=lambda bits, signed, dtype, precision: QuantSpec(bits, signed, rounding="half_even"),
    ),
}


def profiles() -> tuple[str, ...]:
    """The names of all profiles.

    >>> "seed-floor@1" in profiles()
    True
    """
    return tuple(PROFILES)


def profile(
    name: str, *, bits: int = 8, signed: bool = True, dtype: str = "float32", precision: str | None = None
) -> QuantSpec:
    """The semantics that a named profile gives to codes of this width, per tensor.

    dtype names the float type of input and scale, precision an explicit precision attribute, for
    profiles whose rule depends on them.  Raises ArgumentError for an unknown name.

    >>> profile("seed-floor@1", bits=4).rounding
    'floor'
    """
    if name not in PROFILES:
        raise ArgumentError(complaint(f"profile {name!r}", f"one of {', '.join(PROFILES)}", "profile"))
    return PROFILES[name].make(bits, signed, dtype, precision)
