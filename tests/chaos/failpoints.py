"""Places in the core where a worker kills itself: FAILPOINT=<name>:<every>:<times>, loaded by HANDLER_MODULES.

The worker dies at each `every`th passage, `times` times in all, however often it is started again; a file in
EFFECTS_FOLDER for each death keeps the count. No product code knows of it: the core is patched in the worker's
own process.
"""

import functools
import os
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

NAMES = ("before-run", "after-effect", "after-retry-write", "before-settle", "after-settle")

_passages = count(1)


def _wanted() -> tuple[str, int, int]:
    name, every, times = os.environ.get("FAILPOINT", "none:1:0").split(":")
    return name, int(every), int(times)


def passed(name: str) -> None:
    """Die here when it is time to."""
    wanted, every, times = _wanted()
    if name != wanted or next(_passages) % every:
        return
    for number in range(times):
        try:
            (Path(os.environ["EFFECTS_FOLDER"]) / f"failpoint-{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        os.kill(os.getpid(), signal.SIGKILL)


def _before(owner: type, method: str, name: str) -> None:
    original = getattr(owner, method)

    @functools.wraps(original)
    async def patched(*arguments: Any, **named: Any) -> Any:
        passed(name)
        return await original(*arguments, **named)

    setattr(owner, method, patched)


def _after(owner: type, method: str, name: str, meant: Callable[..., bool]) -> None:
    original = getattr(owner, method)

    @functools.wraps(original)
    async def patched(*arguments: Any, **named: Any) -> Any:
        matches = meant(*arguments)
        result = await original(*arguments, **named)
        if matches:
            passed(name)
        return result

    setattr(owner, method, patched)


def _carries_on(_: object, messages: Any) -> bool:
    """Return whether a batch holds a retry or a dead letter."""
    return any(one.topic.startswith("jobs.retry.") or one.topic.endswith(".dlt") for one in messages)


def install() -> None:
    """Patch the core for the failpoint that the environment names."""
    from streams.execution import Execution
    from streams.producer import Producer
    from streams.settle import Settlement

    match _wanted()[0]:
        case "before-run":
            _before(Execution, "run", "before-run")
        case "after-retry-write":
            _after(Producer, "send", "after-retry-write", _carries_on)
        case "before-settle":
            _after(Settlement, "_mark", "before-settle", lambda _, batch: bool(batch))
        case "after-settle":
            _after(Settlement, "_settle", "after-settle", lambda _, batch, notes: bool(batch))


install()
