"""One BLAS thread: the last bits of a matrix product change with the number of threads that share it.

Work is spread over batches instead, whose size is fixed, so that results are the same bytes for any
number of workers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # no stubs exist

__all__ = ["one_blas_thread"]

_lock = Lock()
_entered = 0
_lift: Callable[[], object] = int  # undoes the limit


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Inside, every BLAS call of the process runs on one thread; contexts may nest, and overlap between threads.

    Afterwards the earlier setting is back, also after an error.  Where no BLAS library is known to
    threadpoolctl (such as Apple's Accelerate), nothing changes.

    >>> with one_blas_thread():
    ...     pass
    """
    global _entered, _lift
    with _lock:  # the limit is the process's: the first to enter sets it, the last to leave lifts it
        if _entered == 0:
            _lift = threadpool_limits(1, "blas").restore_original_limits
        _entered += 1
    try:
        yield
    finally:
        with _lock:
            _entered -= 1
            if _entered == 0:
                _lift()
