"""What operators say to all workers at once, and how workers hear of it.

What is said has a name and a value, and replaces what was said under that name before. Everything said gets a
version, greater than all before it; a worker asks every now and then for what came after the last it has heard.
So asking costs one command while nothing is said, and as much as there is news otherwise: neither a job nor the
number of things said before makes it dearer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final, Protocol

from redis.asyncio import ConnectionPool

from ratelimit.admission import EPOCH, MICROSECOND, MILLISECOND
from ratelimit.connection import pool_of
from ratelimit.model import utc_now
from ratelimit.server import TIMEOUT, Script, Server

CHANGES_KEPT: Final = 10_000

PAGE: Final = 1_000
"""Most that is said, heard or forgotten in one round trip."""


@dataclass(frozen=True, slots=True)
class Said:
    """One thing that was said; `value` is None when it was taken back, `until` is None when it holds for ever."""

    version: int
    name: str
    value: str | None
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Change:
    """Who changed what, and when: the value before and after, None where nothing was said."""

    at: datetime
    by: str
    name: str
    was: str | None
    now: str | None


class Control(Protocol):
    """Keeps what is said; raises AdmissionUnavailable when it cannot answer now, and may be asked again then."""

    async def say(self, values: Mapping[str, str | None], keep: timedelta | None, *, by: str = "") -> None:
        """Say something under each name, or take it back with None, for as long as `keep`, or for ever.

        What is taken back needs to be kept only until every worker has heard of it. With `by`, who says it, each
        change is kept for `changes`.
        """
        ...

    async def changes(self, count: int) -> list[Change]:
        """Return the latest changes that were said by somebody, the latest last; about CHANGES_KEPT are kept."""
        ...

    async def after(self, version: int) -> list[Said]:
        """Return the first PAGE things that were said after a version, in their order; [] when there is nothing.

        What was replaced since is left out. What is past its `until` may be among them.
        """
        ...

    async def answer(self, question: str, worker: str, text: str, keep: timedelta) -> None:
        """Keep what a worker answers to a question that was said, for so long."""
        ...

    async def answers(self, question: str, workers: Sequence[str]) -> dict[str, str]:
        """Return what those of the workers have answered that have, by worker."""
        ...

    async def close(self) -> None:
        """Release what the connection holds."""
        ...


class Listener:
    """Hears everything that is said, once each, in its order."""

    def __init__(self, control: Control, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._control = control
        self._clock = clock
        self._heard = 0

    async def news(self) -> list[Said]:
        """Return what was said since the last call, all of it at the first; what has ended by then is left out.

        When AdmissionUnavailable is raised, the next call returns what this one would have.
        """
        heard, news = self._heard, list[Said]()
        while page := await self._control.after(heard):
            news += page
            heard = page[-1].version
        self._heard = heard
        now = self._clock()
        return [said for said in news if said.until is None or said.until > now]


class ModelControl:
    """Keep what is said in the memory of one process, by `clock`, for tests."""

    def __init__(self, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._clock = clock
        self._said: dict[str, Said] = {}
        self._changes: list[Change] = []
        self._answers: dict[tuple[str, str], tuple[str, datetime]] = {}

    async def say(self, values: Mapping[str, str | None], keep: timedelta | None, *, by: str = "") -> None:
        """Say something under each name, or take it back with None, for as long as `keep`, or for ever."""
        now = self._clock()
        until = None if keep is None else EPOCH + ((now - EPOCH) // MILLISECOND) * MILLISECOND + keep
        self._said = {
            name: said for name, said in self._said.items() if said.until is None or said.until > now
        }
        last = max((said.version for said in self._said.values()), default=0)
        version = max((now - EPOCH) // MICROSECOND, last + 1)
        for number, (name, value) in enumerate(values.items()):
            before = self._said.pop(name, None)
            if by:
                self._changes.append(Change(now, by, name, before.value if before else None, value))
            self._said[name] = Said(version + number, name, value, until)

    async def after(self, version: int) -> list[Said]:
        """Return the first PAGE things that were said after a version, in their order; [] when there is nothing."""
        return list(islice((said for said in self._said.values() if said.version > version), PAGE))

    async def changes(self, count: int) -> list[Change]:
        """Return the latest changes that were said by somebody, the latest last."""
        return self._changes[-count:]

    async def answer(self, question: str, worker: str, text: str, keep: timedelta) -> None:
        """Keep what a worker answers to a question that was said, for so long."""
        now = self._clock()
        self._answers = {name: one for name, one in self._answers.items() if one[1] > now}
        self._answers[question, worker] = text, now + keep

    async def answers(self, question: str, workers: Sequence[str]) -> dict[str, str]:
        """Return what those of the workers have answered that have, by worker."""
        found = {one: self._answers.get((question, one), ("", EPOCH)) for one in workers}
        return {worker: text for worker, (text, until) in found.items() if until > self._clock()}

    async def close(self) -> None:
        """Forget nothing: there is nothing to release."""

    def flush(self) -> None:
        """Lose everything, as Redis does on FLUSHALL."""
        self._said.clear()
        self._changes.clear()
        self._answers.clear()


class RedisControl:
    """Keep what is said in Redis, by its clock, under keys that start with `{prefix}`.

    Every round trip answers or raises AdmissionUnavailable within `timeout`. What is said is as lasting as the
    server is: what was lost there is known to those who had heard it, and to no worker that starts later.
    `clock` replaces Redis TIME, for tests only.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        prefix: str = "streams",
        timeout: timedelta = TIMEOUT,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._server = Server(pool, timeout)
        self._keys = [f"{{{prefix}}}:control:{part}" for part in ("versions", "values", "ends", "changes")]
        self._answer_prefix = f"{{{prefix}}}:answer:"
        self._control, self._news = Script("control"), Script("news")
        self._clock = clock

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        prefix: str = "streams",
        timeout: timedelta = TIMEOUT,
        clock: Callable[[], datetime] | None = None,
    ) -> "RedisControl":
        """Return one for a URL such as RedisAdmission takes; it connects at the first call."""
        return cls(pool_of(url, timeout), prefix=prefix, timeout=timeout, clock=clock)

    async def say(self, values: Mapping[str, str | None], keep: timedelta | None, *, by: str = "") -> None:
        """Say something under each name, or take it back with None, for as long as `keep`, or for ever."""
        now = "" if self._clock is None else (self._clock() - EPOCH) // MICROSECOND
        keep_ms = 0 if keep is None else max(keep // MILLISECOND, 1)
        left = iter(values.items())
        while part := list(islice(left, PAGE)):
            arguments: list[Any] = [now, keep_ms, PAGE, by, CHANGES_KEPT]
            for name, value in part:
                arguments += (name, "-" if value is None else f"={value}")
            await self._server.call(self._control, self._keys, arguments)

    async def after(self, version: int) -> list[Said]:
        """Return the first PAGE things that were said after a version, in their order; [] when there is nothing."""
        found = await self._server.call(self._news, self._keys[:2], [version, PAGE])
        return [_said(*pair) for pair in zip(*found, strict=True)]

    async def changes(self, count: int) -> list[Change]:
        """Return the latest changes that were said by somebody, the latest last."""
        found = await self._server.execute("XREVRANGE", self._keys[3], "+", "-", "COUNT", count)
        return [_change(fields) for _, fields in reversed(found)]

    async def answer(self, question: str, worker: str, text: str, keep: timedelta) -> None:
        """Keep what a worker answers to a question that was said, for so long."""
        key = f"{self._answer_prefix}{question}:{worker}"
        await self._server.execute("SET", key, text, "PX", max(keep // MILLISECOND, 1))

    async def answers(self, question: str, workers: Sequence[str]) -> dict[str, str]:
        """Return what those of the workers have answered that have, by worker."""
        if not workers:
            return {}
        keys = [f"{self._answer_prefix}{question}:{worker}" for worker in workers]
        found = await self._server.execute("MGET", *keys)
        return {
            worker: text.decode() for worker, text in zip(workers, found, strict=True) if text is not None
        }

    async def close(self) -> None:
        """Close the connections."""
        await self._server.close()


def _said(name: bytes, kept: bytes) -> Said:
    version, ends_ms, value = kept.decode().split(" ", 2)
    until = EPOCH + int(ends_ms) * MILLISECOND if ends_ms != "0" else None
    return Said(int(version), name.decode(), _value(value), until)


def _value(kept: str) -> str | None:
    return kept[1:] if kept.startswith("=") else None


def _change(fields: list[bytes]) -> Change:
    texts = [one.decode() for one in fields]
    of = dict(zip(texts[::2], texts[1::2], strict=True))
    at = EPOCH + int(of["at"]) * MICROSECOND
    return Change(at, of["by"], of["name"], _value(of["was"]), _value(of["is"]))
