"""Which deliveries are the first of their ordering keys, wherever the earlier ones wait."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from ratelimit import Admission, AdmissionUnavailable
from streams.delivery import EPOCH, Delivery
from streams.window import Window

LINE_PATIENCE = timedelta(minutes=1)
"""How long overdue what is ahead may be on a queue that goes on without Redis: it may have ended, untold, meanwhile."""

LINE_RETRY = timedelta(milliseconds=250)
"""How soon a delivery asks again whether it is the first of its ordering key, once the one ahead of it is due."""


class Order:
    """Asks the ledger what is kept ahead of deliveries; those behind something wait for it in the window."""

    def __init__(self, admission: Admission, window: Window, *, closed: bool) -> None:
        self._admission = admission
        self._window = window
        self._closed = closed

    async def firsts(self, batch: Sequence[Delivery], now: datetime) -> Sequence[Delivery]:
        """Return what no earlier job of its ordering key is ahead of, somewhere else; the rest waits for that.

        Raises AdmissionUnavailable when that cannot be told and no job may begin without the ledger.
        """
        ordered = [one for one in batch if one.ordering_key is not None]
        overdue = EPOCH if self._closed else now - LINE_PATIENCE
        try:
            ahead = await self._admission.ahead([one.in_line for one in ordered], overdue=overdue)
        except AdmissionUnavailable:
            if self._closed:
                raise
            return batch
        behind = {one: due for one, due in zip(ordered, ahead, strict=True) if due is not None}
        for delivery, due in behind.items():
            if delivery.offsets.gone:
                self._window.let_go(delivery)
            else:
                self._window.hold_line(delivery, max(due, now + LINE_RETRY))
        return [one for one in batch if one not in behind]
