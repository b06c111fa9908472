"""What all tests share: reproducible examples, figures without a screen, NumPy's own way of printing."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: files of tests run side by side, a thread each

import hypothesis
import numpy as np
import pytest

os.environ.setdefault("MPLBACKEND", "Agg")  # inherited by commands and kernels that tests start

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis.settings.register_profile("nightly", derandomize=False, deadline=None, max_examples=2000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Below tests/ only test files are opened: helpers and clients have no doctests and may import peers."""
    helper = collection_path.suffix == ".py" and not collection_path.name.startswith("test_")
    return True if helper else None


@pytest.fixture(autouse=True, scope="module")
def numpy_printing_stays() -> Iterator[None]:
    """No test changes how a later doctest prints."""
    with np.printoptions():
        yield
