"""What is kept of each item, as short text: bits, and small whole numbers."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

MOST = 255


def pack(values: Sequence[int]) -> str:
    """Whole numbers from 0 to 255 as text; bits take an eighth of the room."""
    numbers = np.asarray(values, np.int64)
    if numbers.ndim != 1 or (numbers < 0).any() or (numbers > MOST).any():
        raise DataError(f"only whole numbers from 0 to {MOST} can be packed")
    bits = bool((numbers <= 1).all())
    data = np.packbits(numbers.astype(bool)) if bits else numbers.astype(np.uint8)
    return ("b" if bits else "n") + base64.b85encode(zlib.compress(data.tobytes(), 9)).decode()


def unpack(text: str, count: int) -> NDArray[np.int64]:
    """The numbers that [`pack`] was given.

    Args:
        text (`str`): of [`pack`].
        count (`int`): how many there were.

    Raises:
        DataError: it is something else.
    """
    room = count if text[:1] == "n" else -(-count // 8)
    try:
        opened = zlib.decompressobj()
        data = np.frombuffer(opened.decompress(base64.b85decode(text[1:]), room + 1), np.uint8)
    except (ValueError, binascii.Error, zlib.error) as error:
        raise DataError(f"packed items can't be read ({error})") from None
    if text[:1] not in ("b", "n") or len(data) != room:
        raise DataError(f"packed items are not {count} numbers")
    return (np.unpackbits(data, count=count) if text[0] == "b" else data).astype(np.int64)
