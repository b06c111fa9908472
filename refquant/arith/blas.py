"""One BLAS thread: a matrix product's last bits change with its number of threads."""

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

__all__ = ["one_blas_thread"]


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within this context every BLAS call of the process runs on one thread.

    >>> with one_blas_thread():
    ...     pass
    """
    with threadpool_limits(limits=1, user_api="blas"):
        yield
