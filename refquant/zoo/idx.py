"""The idx format of the MNIST family: a header of big-endian numbers, then the bytes of an array.

Header: two zero bytes, 8 (the type: unsigned bytes), the number of axes d, then d sizes of four bytes each.
Source: LeCun, Cortes and Burges, "The MNIST database", section "File formats".
"""

import math
import struct

import numpy as np
from numpy.typing import NDArray

from ..errors import FileError, complaint

__all__ = ["idx_bytes", "parse_idx"]


def parse_idx(content: bytes, where: str) -> NDArray[np.uint8]:
    """The array of an idx file of unsigned bytes, read-only.

    Raises FileError for any other content.

    >>> parse_idx(idx_bytes(np.uint8([[7, 8]])), "here")
    array([[7, 8]], dtype=uint8)
    """
    axes = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * axes
    shape = struct.unpack(f">{axes}I", content[4:start]) if axes and len(content) >= start else ()
    if not shape or len(content) != start + math.prod(shape):
        got = f"{len(content)} bytes that begin {content[:4].hex()}"
        raise FileError(complaint(got, "a whole idx file of unsigned bytes", where))
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """The idx file of an array of unsigned bytes.

    >>> idx_bytes(np.uint8([7, 8])).hex()
    '00000801000000020708'
    """
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
