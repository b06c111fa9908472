"""One BLAS thread while anyone is inside, and the earlier number afterwards."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-untyped]  # no stubs exist

from refquant.arith.blas import one_blas_thread


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture
def two_threads() -> Iterator[None]:
    with threadpool_limits(2, "blas"):
        if blas_threads() != {2}:
            pytest.skip("no BLAS library whose threads can be set")
        yield


def test_one_thread_inside_and_the_old_number_after(two_threads: None) -> None:
    with one_blas_thread():
        assert blas_threads() == {1}
        with one_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == {1}
    assert blas_threads() == {2}


def test_contexts_that_overlap_keep_one_thread_until_the_last_ends(two_threads: None) -> None:
    first, second = ExitStack(), ExitStack()
    first.enter_context(one_blas_thread())
    second.enter_context(one_blas_thread())
    first.close()
    assert blas_threads() == {1}
    second.close()
    assert blas_threads() == {2}


def test_an_error_inside_restores_the_number(two_threads: None) -> None:
    with pytest.raises(ZeroDivisionError), one_blas_thread():
        raise ZeroDivisionError
    assert blas_threads() == {2}
