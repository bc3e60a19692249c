"""A wrong wall clock in one worker: CLOCK_SKEW_SECONDS, loaded by HANDLER_MODULES after the handlers.

Everything of Python that asks for the time of day is answered wrongly; what measures durations is not, as on a
machine whose clock is set wrong.
"""

import os
import sys
import time
from datetime import datetime, timedelta, tzinfo

SKEW = timedelta(seconds=float(os.environ.get("CLOCK_SKEW_SECONDS", "0")))

_time, _time_ns = time.time, time.time_ns


class Skewed(datetime):
    """A datetime whose now is wrong."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + SKEW


def install() -> None:
    """Set the clock of this process."""
    time.time = lambda: _time() + SKEW.total_seconds()
    time.time_ns = lambda: _time_ns() + int(SKEW.total_seconds()) * 1_000_000_000
    for name, module in list(sys.modules.items()):
        if name.startswith("streams.") and getattr(module, "datetime", None) is datetime:
            module.datetime = Skewed  # type: ignore[attr-defined]


if SKEW:
    install()
