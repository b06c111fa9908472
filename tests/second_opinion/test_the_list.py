"""The comparison itself: it sees what differs, and what is listed without reason."""

from collections.abc import Callable
from typing import Any

import pytest


def test_a_difference_is_seen(agree: Callable[..., None]) -> None:
    agree("case", [1, 2], [1, 2])
    with pytest.raises(AssertionError, match="1 of 2 differ"):
        agree("case", [1, 2], [1, 3])
    with pytest.raises(AssertionError, match="nothing compared"):
        agree("case", [], [])


def test_a_listed_case_must_disagree(agree: Callable[..., None]) -> None:
    agree("ml_dtypes/int4 conversion", [1], [2])
    with pytest.raises(AssertionError, match="there is none"):
        agree("ml_dtypes/int4 conversion", [1], [1])


@pytest.mark.parametrize("line", ["case | Q1 | somewhere", "case | Q1 | | nobody"])
def test_a_line_without_a_reason_is_refused(line: str, request: Any) -> None:
    read_known = request.config.pluginmanager  # the reader stands in conftest.py
    module = next(p for p in read_known.get_plugins() if getattr(p, "KNOWN", None) is not None)
    with pytest.raises(AssertionError, match="four parts"):
        module.read_known(line)
