"""Queue `maintenance`: system clean-up."""

from datetime import UTC, datetime, timedelta

from pydantic import Field, field_validator

from providers.artifacts import artifacts
from streams.jobs import Job, Payload, Result, handles
from streams.queues import MAINTENANCE

REMOVABLE = ("tmp/", "exports/", "previews/")
"""Prefixes that hold what can be made again; everything else is never cleaned up."""


class CleanUp(Payload):
    """What to delete: artifacts under these prefixes that are older than the age."""

    prefixes: list[str] = Field(min_length=1)
    older_than_hours: float = Field(ge=1)

    @field_validator("prefixes")
    @classmethod
    def _removable(cls, value: list[str]) -> list[str]:
        if not all(prefix.startswith(REMOVABLE) for prefix in value):
            raise ValueError(f"every prefix must start with one of {', '.join(REMOVABLE)}")
        return value


class CleanedUp(Result):
    """How many artifacts were deleted, by prefix."""

    deleted: dict[str, int]


@handles(MAINTENANCE, "maintenance.cleanup", timeout=timedelta(minutes=10), max_attempts=3)
def clean_up(job: Job[CleanUp]) -> CleanedUp:
    """Delete the organization's artifacts that have outlived their use."""
    age, store = timedelta(hours=job.payload.older_than_hours), artifacts()
    # Counted from when the job was queued: one that waited must not delete more than was asked for.
    now = min(job.queued_at, datetime.now(UTC))
    return CleanedUp(
        deleted={
            prefix: store.delete_older_than(job.organization_id, prefix, age, now)
            for prefix in dict.fromkeys(job.payload.prefixes)
        }
    )
