"""Which workers live, for sharing limits among them while Redis is away, and which of them shall end."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from ratelimit import Admission, AdmissionUnavailable
from ratelimit.control import Said
from streams.queues import WorkerType

log = logging.getLogger(__name__)

BEAT = timedelta(seconds=5)
ALIVE = 3 * BEAT
"""How long a worker counts as alive after it last said so."""

DRAIN = "drain:"
"""What the names of drains begin with, among all that operators say."""

HEARD_FOR = timedelta(minutes=1)
"""How long a drain is kept for its worker to hear of it."""


@dataclass(frozen=True, slots=True)
class Drain:
    """That a worker hands over its partitions, lets what runs end within the grace, and ends."""

    grace: timedelta
    by: str

    @staticmethod
    def name_for(worker: str) -> str:
        """Return the name under which it is said to a worker."""
        return f"{DRAIN}{worker}"

    def text(self) -> str:
        """Return it as it is said."""
        return json.dumps({"graceSeconds": self.grace.total_seconds(), "by": self.by})

    @classmethod
    def of_text(cls, text: str) -> "Drain":
        """Return what was said; raises ValueError, KeyError or TypeError when it is no drain."""
        said = json.loads(text)
        return cls(timedelta(seconds=said["graceSeconds"]), said["by"])


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """A worker that has said so within `ALIVE`."""

    id: str
    type: str

    @property
    def name(self) -> str:
        """Return its name among workers of all types."""
        return f"{self.type}/{self.id}"


async def living(admission: Admission) -> list[LiveWorker]:
    """Return the workers that live; raises AdmissionUnavailable."""
    # That nobody lives no longer changes nothing, and is answered as all that is said of workers.
    names = await admission.present("-", timedelta(0))
    parts = [name.partition("/") for name in names]
    return sorted((LiveWorker(one, of) for of, _, one in parts), key=lambda live: live.name)


class LiveWorkers:
    """Says every few seconds that this worker lives, remembers how many said so last, and hears when to end."""

    def __init__(self, worker_type: WorkerType, worker_id: str, admission: Admission) -> None:
        self._type = worker_type
        self.name = f"{worker_type}/{worker_id}"
        self._admission = admission
        self._count: Counter[str] = Counter({worker_type: 1})
        self._has_heard = False
        self.drain: asyncio.Future[Drain] = asyncio.get_running_loop().create_future()
        """Done when an operator has drained this worker."""

    async def run(self) -> None:
        """Go on until cancelled; while Redis is away, the last numbers stay."""
        while True:
            try:
                self._heard(await self._admission.present(self.name, ALIVE))
            except AdmissionUnavailable as error:
                log.debug("the workers that live are as before: %s", error)
            await asyncio.sleep(BEAT.total_seconds())

    def _heard(self, names: list[str]) -> None:
        self._count = Counter(name.partition("/")[0] for name in names)

    async def leave(self) -> None:
        """Say that this worker lives no more."""
        try:
            await self._admission.present(self.name, timedelta(0))
        except AdmissionUnavailable as error:
            log.info("this worker counts as alive for %s more: %s", ALIVE, error)

    def hear(self, news: Iterable[Said]) -> None:
        """Take what was said; what was said before the first time was meant for another process of this name."""
        mine = [one for one in news if one.name == Drain.name_for(self.name) and one.value is not None]
        if self._has_heard and mine and not self.drain.done():
            try:
                self.drain.set_result(Drain.of_text(mine[-1].value or ""))
            except (ValueError, KeyError, TypeError) as error:
                log.error("%s is not understood, so this worker goes on: %r", mine[-1].name, error)
        self._has_heard = True

    def sharing(self, limit: str) -> int:
        """Return how many workers run jobs that fall under the limit of a name; at least this one."""
        # A queue and a job type belong to one worker type; an organization and a provider may to several.
        bound = "queue=" in limit or "type=" in limit
        return max(self._count[self._type] if bound else self._count.total(), 1)
