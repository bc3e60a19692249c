"""A worker that takes a second from resuming its partitions to resuming its queues; loaded by HANDLER_MODULES.

On a machine with too much to do that happens by itself, now and then: what is read in between meets queues that
Faust empties when it resumes them.
"""

import asyncio

from faust.transport.consumer import Consumer

LATE_SECONDS = 1.0

_perform_seek = Consumer.perform_seek


async def _late(consumer: Consumer) -> None:
    await asyncio.sleep(LATE_SECONDS / 2)
    await _perform_seek(consumer)
    await asyncio.sleep(LATE_SECONDS / 2)


Consumer.perform_seek = _late  # type: ignore[assignment, method-assign]
