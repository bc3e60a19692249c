"""Which workers live, for sharing limits among them while Redis is away."""

import asyncio
import logging
from collections import Counter
from datetime import timedelta

from ratelimit import Admission, AdmissionUnavailable
from streams.queues import WorkerType

log = logging.getLogger(__name__)

BEAT = timedelta(seconds=5)
ALIVE = 3 * BEAT
"""How long a worker counts as alive after it last said so."""


class LiveWorkers:
    """Says every few seconds that this worker lives, and remembers how many said so last."""

    def __init__(self, worker_type: WorkerType, worker_id: str, admission: Admission) -> None:
        self._type = worker_type
        self.name = f"{worker_type}/{worker_id}"
        self._admission = admission
        self._count: Counter[str] = Counter({worker_type: 1})

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

    def sharing(self, limit: str) -> int:
        """Return how many workers run jobs that fall under the limit of a name; at least this one."""
        # A queue and a job type belong to one worker type; an organization and a provider may to several.
        bound = "queue=" in limit or "type=" in limit
        return max(self._count[self._type] if bound else self._count.total(), 1)
