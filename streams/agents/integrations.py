"""Queue `integrations`: copies of what other systems know about an organization."""

from datetime import datetime, timedelta

from pydantic import field_validator

from providers import quickbooks, stripe
from providers.artifacts import artifacts
from providers.records import RecordStore, Synced, synchronise
from streams.jobs import Job, Payload, Result, handles
from streams.queues import INTEGRATIONS


class SyncQuickBooks(Payload):
    """Which entity to copy; from the export file when one is named, else from the connected company."""

    entity: str
    export_uri: str | None = None

    @field_validator("entity")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in quickbooks.ENTITIES:
            raise ValueError(f"entity must be one of {', '.join(quickbooks.ENTITIES)}")
        return value


class SyncStripe(Payload):
    """Which collection to copy; from the export file when one is named, else from the connected account."""

    collection: str
    export_uri: str | None = None

    @field_validator("collection")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in stripe.COLLECTIONS:
            raise ValueError(f"collection must be one of {', '.join(stripe.COLLECTIONS)}")
        return value


class RecordsSynced(Result):
    """How many records were read, how many of them were new or changed, and up to when."""

    read: int
    written: int
    up_to: datetime | None


@handles(
    INTEGRATIONS, "quickbooks.sync", timeout=timedelta(minutes=10), max_attempts=6, provider="quickbooks"
)
def sync_quickbooks(job: Job[SyncQuickBooks]) -> RecordsSynced:
    """Copy the records of one QuickBooks entity that changed since the last time."""
    wanted = job.payload
    with quickbooks.source(artifacts(), job.organization_id, wanted.export_uri) as source:
        store = RecordStore(artifacts(), job.organization_id, "quickbooks")
        return _result(synchronise(source, store, wanted.entity, stopped=lambda: job.cancelled))


@handles(INTEGRATIONS, "stripe.sync", timeout=timedelta(minutes=10), max_attempts=6, provider="stripe")
def sync_stripe(job: Job[SyncStripe]) -> RecordsSynced:
    """Copy the records of one Stripe collection that changed since the last time."""
    wanted = job.payload
    with stripe.source(artifacts(), job.organization_id, wanted.export_uri) as source:
        store = RecordStore(artifacts(), job.organization_id, "stripe")
        return _result(synchronise(source, store, wanted.collection, stopped=lambda: job.cancelled))


def _result(synced: Synced) -> RecordsSynced:
    return RecordsSynced(read=synced.read, written=synced.written, up_to=synced.up_to)
