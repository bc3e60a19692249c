"""Caps on the backlogs of organizations, as those who publish keep to them."""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Collection, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from datetime import timedelta
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from redis.exceptions import RedisError

from ratelimit import AdmissionUnavailable
from ratelimit.backlog import Asked, Backlog, Full, Left, RedisBacklog
from ratelimit.control import Control, Listener, RedisControl
from streams.publication import Prepared
from streams.rules import Rules
from streams.settings import Settings

log = logging.getLogger(__name__)

HEARD_FOR = timedelta(seconds=1)
"""How long what was heard of caps holds before it is asked for again."""

REMEMBERED_FOR = timedelta(hours=1)
"""Whoever has heard nothing for longer hears everything anew: what was taken back is not told for ever."""

ASK_AGAIN = timedelta(seconds=30)
"""When Redis is asked again after it could not answer."""

TIMEOUT = timedelta(milliseconds=500)
"""How long a publish waits for Redis, for each of two questions."""

T = TypeVar("T")


class Entered(NamedTuple):
    """What became of jobs that are to be published."""

    prepared: Sequence[Prepared]
    """Those that may be."""
    refused: Sequence[Prepared] = ()
    full: Mapping[str, Full] = MappingProxyType({})
    """The organizations of those that were refused."""
    new: Collection[str] = ()
    """The identities of those that count from now on, and did not before."""


class Caps:
    """Says which jobs may be published, by what operators have said of backlogs.

    Redis is asked in a thread of its own, so that this serves threads and event loops of any kind. While it cannot
    answer, every job may be published, and counts nowhere.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rules = Rules()
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._fresh_until = 0.0
        self._remembers_until = 0.0
        self._away_until = 0.0 if settings.publish_caps else math.inf
        self._answers = True

    def enter(self, prepared: Sequence[Prepared]) -> "Future[Entered]":
        """Let jobs into the backlogs of their organizations, of each all or none; those without a cap always may."""
        now = time.monotonic()
        if now < self._away_until or (now < self._fresh_until and not self._asked(prepared)):
            may: Future[Entered] = Future()
            may.set_result(Entered(prepared))
            return may
        return self._run(self._enter(prepared))

    def take_back(self, entered: Entered, published: Collection[Prepared]) -> None:
        """Count those no longer that entered and were not published after all."""
        there = {one.identity for one in published}
        left = [
            Left(one.organization_id, one.identity)
            for one in entered.prepared
            if one.identity in entered.new and one.identity not in there
        ]
        if left:
            self._run(self._take_back(left))

    def close(self) -> None:
        """Finish what is under way and let go of Redis."""
        with self._starting:
            loop, thread, self._loop = self._loop, self._thread, None
        if loop is not None and thread is not None:
            asyncio.run_coroutine_threadsafe(self._leave(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        with self._starting:
            # In a process that was forked, the thread is not there.
            if self._loop is None or self._thread is None or not self._thread.is_alive():
                self._control, self._backlog = self._connect()
                self._fresh_until = self._remembers_until = 0.0
                self._hearing = asyncio.Lock()
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="caps", daemon=True)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _connect(self) -> tuple[Control, Backlog]:
        url, prefix = self._settings.redis, self._settings.redis_prefix
        keep = self._settings.marker_retention
        return (
            RedisControl.from_url(url, prefix=prefix, timeout=TIMEOUT),
            RedisBacklog.from_url(url, prefix=prefix, keep=keep, timeout=TIMEOUT),
        )

    # -- in the thread --------------------------------------------------------------------------------------

    async def _enter(self, prepared: Sequence[Prepared]) -> Entered:
        try:
            await self._hear()
            asked = self._asked(prepared)
            answers = await self._backlog.enter(asked) if asked else []
        except (AdmissionUnavailable, RedisError) as error:
            # Whatever it is that Redis does not do for this publisher: it can publish without.
            self._away_until = time.monotonic() + ASK_AGAIN.total_seconds()
            if self._answers:
                log.warning("jobs are published whatever the caps on backlogs: %s", error)
            self._answers = False
            return Entered(prepared)
        self._answers = True
        full: dict[str, Full] = {}
        new: set[str] = set()
        for (organization, _, _), answer in zip(asked, answers, strict=True):
            if isinstance(answer, Full):
                full[organization] = answer
            else:
                new |= answer
        if not full:
            return Entered(prepared, new=new)
        return Entered(
            [one for one in prepared if one.organization_id not in full],
            [one for one in prepared if one.organization_id in full],
            full,
            new,
        )

    async def _hear(self) -> None:
        async with self._hearing:
            if time.monotonic() < self._fresh_until:
                return
            rules = self._rules
            if time.monotonic() >= self._remembers_until:
                self._listener, rules = Listener(self._control), Rules()
            rules.hear(await self._listener.news())
            self._rules = rules
            heard_at = time.monotonic()
            self._fresh_until = heard_at + HEARD_FOR.total_seconds()
            self._remembers_until = heard_at + REMEMBERED_FOR.total_seconds()

    def _asked(self, prepared: Sequence[Prepared]) -> list[Asked]:
        if not self._rules.caps:
            return []
        of: dict[str, list[str]] = {}
        for one in prepared:
            of.setdefault(one.organization_id, []).append(one.identity)
        return [
            Asked(organization, cap, identities)
            for organization, identities in of.items()
            if (cap := self._rules.cap(organization)) is not None
        ]

    async def _take_back(self, left: Sequence[Left]) -> None:
        try:
            await self._backlog.take_back(left)
        except (AdmissionUnavailable, RedisError) as error:
            log.warning("%d jobs that were not published count in backlogs: %s", len(left), error)

    async def _leave(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)
        await self._control.close()
        await self._backlog.close()
