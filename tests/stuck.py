"""Handlers of no job: loaded into a real worker as HANDLER_MODULES, it makes a part of it stand still.

STUCK names the part, and EFFECTS_FOLDER holds a file of that name once it is to stand still.
"""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from ratelimit.redis import RedisAdmission
from streams.retry import RetryForwarder

_resume, _admit = RetryForwarder._resume, RedisAdmission.admit


def stuck(part: str) -> bool:
    return os.environ["STUCK"] == part and (Path(os.environ["EFFECTS_FOLDER"]) / part).exists()


def resume(self: RetryForwarder, *arguments: Any) -> None:
    while stuck("forwarder"):
        time.sleep(0.1)
    _resume(self, *arguments)


def block_the_loop() -> None:
    while stuck("loop"):
        time.sleep(0.1)


async def admit(self: RedisAdmission, candidates: Any) -> Any:
    block_the_loop()
    while stuck("admission"):  # noqa: ASYNC110 - another process removes the file
        await asyncio.sleep(0.1)
    return await _admit(self, candidates)


RetryForwarder._resume = resume  # type: ignore[method-assign, assignment]
RedisAdmission.admit = admit  # type: ignore[method-assign]
