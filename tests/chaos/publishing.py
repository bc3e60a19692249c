"""Publishing all the time: a thread that remembers every publish that was acknowledged."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from streams.client import SyncJobs
from streams.errors import NotAccepted
from streams.jobs import Payload
from streams.publication import Publication, _id_of
from tests.chaos.handlers import Deed, Quick, Threaded, Urgent
from tests.chaos.history import Published

TICK_SECONDS = 0.1
Mix = Callable[[int, random.Random, str], Payload]
"""Which job comes next: its number, a source of randomness, and the secret that it must carry."""


def everyday(number: int, chance: random.Random, secret: str) -> Payload:
    """Return a job as it comes every day: most succeed at once, some later, some never."""
    kind: type[Deed] = chance.choices([Quick, Urgent, Threaded], [80, 15, 5])[0]
    work_ms = chance.choice([2, 5, 10, 20, 60, 150])
    draw = chance.random()
    if draw < 0.05:
        return kind(number=number, work_ms=work_ms, how="transient", fail_attempts=1, password=secret)
    if draw < 0.07:
        return kind(number=number, work_ms=work_ms, how="poison", password=secret)
    if draw < 0.08:
        return kind(number=number, work_ms=work_ms, how="bug", fail_attempts=1, password=secret)
    if draw < 0.10:
        return kind(number=number, work_ms=work_ms, how="snooze", fail_attempts=1, password=secret)
    return kind(number=number, work_ms=work_ms, password=secret)


def end_of(payload: Payload) -> str:
    """Return the kind of end that a deed must come to."""
    assert isinstance(payload, Deed)
    gives_up = 2 if payload.how in ("exit", "segfault") else payload.fail_attempts
    fails = payload.how not in ("succeed", "snooze", "block_loop", "downstream") and gives_up >= 2
    return "dead" if fails else "completed"


class Publishing:
    """Publishes jobs under idempotency keys and keeps what was acknowledged.

    What was not acknowledged is published again under the same key until it is, as a careful producer does.
    """

    def __init__(self, jobs: SyncJobs, secret: str, chance: random.Random, *, organizations: int = 5) -> None:
        self.jobs = jobs
        self.published: list[Published] = []
        self.refused = 0
        """How often the broker did not acknowledge in time."""
        self._secret = secret
        self._chance = chance
        self._organizations = organizations
        self._number = 0
        self._unconfirmed: list[Publication] = []
        self._thread: threading.Thread | None = None
        self._enough = threading.Event()
        self._lock = threading.Lock()

    def payload(self, kind: type[Deed], **fields: Any) -> Payload:
        """Return a payload that carries the secret."""
        return kind(password=self._secret, **fields)

    def publish(self, payloads: Sequence[Payload], organization: str | None = None) -> list[Published]:
        """Publish jobs and return them once the broker has them; raises NotAccepted, and nothing is remembered."""
        wanted = [self._publication(payload, organization) for payload in payloads]
        job_ids = self.jobs.publish_many(wanted)
        acknowledged = [_acknowledged(one, job_id) for one, job_id in zip(wanted, job_ids, strict=True)]
        self.published += acknowledged
        return acknowledged

    def _publication(self, payload: Payload, organization: str | None = None) -> Publication:
        with self._lock:
            number, self._number = self._number, self._number + 1
        name = organization or f"org-{self._chance.randrange(self._organizations)}"
        return Publication(payload, name, idempotency_key=f"key-{number}")

    def steadily(self, per_second: float, mix: Mix = everyday, *, repeated: float = 0.02) -> None:
        """Publish so many a second in the background, until `stop`; some of them a second time."""
        assert self._thread is None
        self._thread = threading.Thread(
            target=self._run, args=(per_second, mix, repeated), name="publishing", daemon=True
        )
        self._thread.start()

    def _run(self, per_second: float, mix: Mix, repeated: float) -> None:
        began, count = time.monotonic(), 0
        last: list[Publication] = []
        while not self._enough.wait(TICK_SECONDS):
            due = int((time.monotonic() - began) * per_second)
            # After an outage it goes on at its pace and does not make up for lost time.
            count = max(count, due - int(2 * per_second))
            batch = [
                self._publication(mix(self._number, self._chance, self._secret)) for _ in range(due - count)
            ]
            count = due
            again = [one for one in last if self._chance.random() < repeated]
            last = batch
            self._send(batch + again)
        while self._unconfirmed:
            self._send([])

    def _send(self, batch: list[Publication]) -> None:
        batch = self._unconfirmed + batch
        self._unconfirmed = []
        for start in range(0, len(batch), 500):
            part = batch[start : start + 500]
            try:
                job_ids = self.jobs.publish_many(part)
                accepted = set(job_ids)
            except NotAccepted as error:
                self.refused += len(error.unconfirmed)
                accepted = set(error.accepted)
                job_ids = [*error.accepted, *error.unconfirmed]
            by_id = {_id_of(one): one for one in part}
            for job_id in dict.fromkeys(job_ids):
                if job_id in accepted:
                    self.published.append(_acknowledged(by_id[job_id], job_id))
                else:
                    self._unconfirmed.append(by_id[job_id])

    def stop(self, within_seconds: float = 60) -> None:
        """Publish nothing more, once everything is acknowledged."""
        self._enough.set()
        if self._thread is not None:
            self._thread.join(within_seconds)
            assert not self._thread.is_alive(), "the broker does not acknowledge"

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()


def _acknowledged(publication: Publication, job_id: str) -> Published:
    key = publication.idempotency_key or job_id
    return Published(job_id, publication.organization_id, key, time.time(), end_of(publication.payload))
