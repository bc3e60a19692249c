"""What becomes of a record that is read: it waits in the window, is skipped, or is settled otherwise at once."""

import logging
import random
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from schemas.codec import NotAvro, UnknownSchema
from streams.breaker import Breakers
from streams.delivery import Decoder, Delivery, Record, read
from streams.errors import InvalidRecord
from streams.lanes import NOT_DUE
from streams.offsets import PartitionOffsets
from streams.operators import Operators
from streams.outcome import Attempt
from streams.queues import SHORTEST_DELAY, Queue
from streams.refill import Refill
from streams.runs import Runs
from streams.settle import Settlement
from streams.unbegun import Unbegun
from streams.window import Window

log = logging.getLogger(__name__)


class Intake:
    """Takes the records of one queue, when they are read and when they are read back."""

    def __init__(
        self,
        queue: Queue,
        codec: Decoder,
        window: Window,
        settlement: Settlement,
        operators: Operators,
        unbegun: Unbegun,
        runs: Runs,
        breakers: Breakers,
        refill: Refill,
        clock: Callable[[], datetime],
    ) -> None:
        self._queue = queue
        self._codec = codec
        self._window = window
        self._settlement = settlement
        self._operators = operators
        self._unbegun = unbegun
        self._runs = runs
        self._breakers = breakers
        self._refill = refill
        self._clock = clock

    def take(self, records: Iterable[Record], offsets: PartitionOffsets) -> None:
        """Take records that were read, in the order of their offsets."""
        now = self._clock()
        orphaned, surplus, must_see = self._runs.orphaned, self._window.surplus, self._must_see()
        skipping = surplus.lanes
        for record in records:
            if not offsets.read(record.offset, record.timestamp):
                continue
            if orphaned and self._runs.adopt(record.offset, offsets):
                continue
            if (
                skipping
                and (lane := skipping.get(record.key or b""))
                and surplus.skipped_unread(lane, record, offsets, must_see)
            ):
                continue
            self._take(record, offsets, now, self._window.offer)
        if skipping:
            self._refill.wake()

    def take_back(self, records: Iterable[Record], offsets: PartitionOffsets) -> None:
        """Take records that were skipped and read back."""
        now = self._clock()
        for record in records:
            self._take(record, offsets, now, self._window.add)

    def _must_see(self) -> Callable[[Mapping[str, bytes]], bool]:
        """Return what says of headers that their record is looked at, though others of its lane are skipped.

        Its job is cancelled, or is of a type that steps aside in an outage: what comes later of its organization must
        not wait until it is read back.
        """
        cancelled = self._operators.cancellations.cover
        if not self._breakers.open:
            return cancelled
        away = {job_type.encode() for job_type in self._breakers.open}
        return lambda headers: headers.get("ce_type") in away or cancelled(headers)

    def _take(
        self, record: Record, offsets: PartitionOffsets, now: datetime, add: Callable[[Delivery], object]
    ) -> None:
        try:
            delivery = read(self._queue, record, offsets, self._codec)
        except UnknownSchema as error:
            self._settlement.await_schema(self._queue, record, offsets, error)
        except (InvalidRecord, NotAvro) as error:
            self._settlement.refuse(self._queue, record, offsets, error)
        except Exception as error:
            # No bytes that someone sends may end the worker: it would read them again, and end again.
            log.exception("%s/%s could not be read", self._queue.topic, record.offset)
            self._settlement.refuse(self._queue, record, offsets, error)
        else:
            due, said = delivery.not_before, self._operators.any
            if said and self._unbegun.end(delivery):
                self._window.depart(delivery)
            elif due is not None and due - now >= SHORTEST_DELAY:
                self._settlement.send_back(delivery, now, due)
            elif (said and self._unbegun.put_aside(delivery, now)) or self.steps_aside(delivery, now):
                self._window.depart(delivery)
            elif due is not None and due > now:
                self._window.hold(delivery, due, NOT_DUE)
            else:
                add(delivery)

    def steps_aside(self, delivery: Delivery, now: datetime) -> bool:
        """Return whether an outage holds a delivery back, and let it come again later if so."""
        if not self._breakers.open:
            return False
        snoozed = self._breakers.aside(delivery, now, random.random())
        if snoozed is not None:
            self._settlement.finish(delivery, snoozed, Attempt(), None)
        return snoozed is not None
