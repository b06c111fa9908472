"""What the second opinions share: near-tie inputs, and the reasoned list of known disagreements."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

KNOWN = Path(__file__).with_name("known_disagreements.txt")


def read_known(text: str) -> dict[str, list[str]]:
    """{case: [clause, where, who is right]}; a line without its four parts is an error."""
    rows = [line.split(" | ") for line in text.splitlines() if line and not line.startswith("#")]
    assert all(len(row) == 4 and all(part.strip() for part in row) for row in rows), "four parts a line"
    return {row[0]: row[1:] for row in rows}


@pytest.fixture
def agree() -> Callable[[str, Any, Any], None]:
    """agree(case, ours, theirs): equal in every element; or, for a listed case, different in some."""
    known = read_known(KNOWN.read_text(encoding="utf-8"))

    def compare(case: str, ours: Any, theirs: Any) -> None:
        a, b = np.asarray(ours), np.asarray(theirs)
        assert a.shape == b.shape, (case, a.shape, b.shape)
        assert a.size, f"{case}: nothing compared"
        wrong = np.count_nonzero(a.astype(np.float64) != b.astype(np.float64))
        if case in known:
            assert wrong, f"{case} is listed as a disagreement, but there is none"
        else:
            assert not wrong, f"{case}: {wrong} of {a.size} differ"

    return compare


@pytest.fixture
def near_ties() -> Callable[..., NDArray[Any]]:
    """near_ties(scale, count, dtype, reach): floats at and next to (k + 1/2) scale, |k| < reach; range ends."""

    def make(
        scale: Any, count: int = 100_000, dtype: Any = np.float32, reach: int = 300, seed: int = 0
    ) -> NDArray[Any]:
        rng = np.random.default_rng(seed)
        k = rng.integers(-reach, reach, count) + 0.5
        x = (k * np.asarray(scale, np.float64)).astype(dtype)
        for _ in range(2):
            way = rng.integers(-1, 2, count)
            x = np.where(way == 0, x, np.nextafter(x, np.copysign(np.inf, way).astype(dtype)))
        x[:8] = np.array([0.0, -0.0, 127, 128, -128, -129, 255, 256], dtype) * dtype(np.min(scale))
        return x.astype(dtype)

    return make
