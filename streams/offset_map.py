"""Which records are settled beyond a committed position, as the metadata of that commit.

A commit has one position, which the slowest job holds back. What is settled beyond it is written beside it, so that
whoever reads the partition next drops those records unasked; Confluent's Parallel Consumer has the same idea. What does
not fit is left out: the ledger knows it all the same.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

PREFIX = "settled/1:"
METADATA_BOUND = 4_000
"""How many characters are written; a broker refuses more than its `offset.metadata.max.bytes`, 4,096 by default."""
_HIGHEST = 2**63
_BYTES = (METADATA_BOUND - len(PREFIX)) // 4 * 3
_LONGEST = 10


class OffsetMap(NamedTuple):
    """What is settled beyond a position."""

    latest_ms: int
    """No record that it speaks of is younger, by its timestamp: a younger one has the offset of one that was lost."""
    bounds: Sequence[int]
    """Where ranges of offsets start and end, in turn."""


def encode(position: int, latest_ms: int, settled: Iterable[tuple[int, int]]) -> str:
    """Return the metadata for ranges of offsets, each without its end, in rising order from the position on.

    After the timestamp gaps and lengths alternate, all as LEB128 numbers.
    """
    numbers = bytearray()
    _append(numbers, latest_ms)
    empty, at = len(numbers), position
    for start, end in settled:
        if len(numbers) > _BYTES - 2 * _LONGEST:
            break
        _append(numbers, start - at)
        _append(numbers, end - start)
        at = end
    return PREFIX + b64encode(numbers).decode() if len(numbers) > empty else ""


def decode(position: int, metadata: str) -> OffsetMap:
    """Return what metadata says; nothing is settled when it is of another kind.

    Raises ValueError when it is of this kind and cannot be read.
    """
    if not metadata.startswith(PREFIX):
        return OffsetMap(0, ())
    latest_ms, *steps = _numbers(b64decode(metadata.removeprefix(PREFIX), validate=True))
    bounds = list(accumulate(steps, initial=position))[1:]
    if len(bounds) % 2:
        raise ValueError("a gap without a length is at its end")
    if max(latest_ms, *bounds[-1:], 0) >= _HIGHEST:
        raise ValueError("it names offsets that no log has")
    return OffsetMap(latest_ms, bounds)


def settled_beyond(position: int, metadata: str) -> set[int]:
    """Return the offsets themselves, for those who look at a group from the outside; raises what `decode` does."""
    bounds = decode(position, metadata).bounds
    return {one for start, end in zip(bounds[::2], bounds[1::2], strict=True) for one in range(start, end)}


def _append(numbers: bytearray, number: int) -> None:
    while number > 0x7F:
        numbers.append(number & 0x7F | 0x80)
        number >>= 7
    numbers.append(number)


def _numbers(raw: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in raw:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte <= 0x7F:
            yield number
            number = shift = 0
    if shift:
        raise ValueError("its last number is cut off")
