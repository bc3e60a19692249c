"""A job type that does nothing, so that what is measured is the pipeline."""

from datetime import timedelta

from streams.jobs import Job, Payload, handles
from streams.queues import CRITICAL


class Nothing(Payload):
    """The input of a job without work."""

    number: int
    filling: str = ""


@handles(CRITICAL, "bench.nothing", timeout=timedelta(seconds=10))
async def nothing(job: Job[Nothing]) -> None:
    """Return at once."""
