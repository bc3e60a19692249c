"""Stripe's HTTP API, version 1."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import httpx

from providers.errors import Unavailable
from providers.http import status_error
from providers.records import Page
from providers.stripe import record_of

TIMEOUT_SECONDS = 30.0
LIMIT = 100
"""The most that the API returns at once."""

LOOKBACK = timedelta(days=30)
"""An invoice is paid, a charge refunded, after it was created, and lists filter by creation only; so each
synchronisation reads this far back again. Later changes arrive as events."""


class StripeApi:
    """The records of one account, by `GET /v1/{collection}`, newest first."""

    def __init__(self, url: str, api_key: str, account: str | None = None, *, limit: int = LIMIT) -> None:
        self._limit = limit
        self._client = httpx.Client(
            base_url=url,
            timeout=TIMEOUT_SECONDS,
            auth=(api_key, ""),
            headers={"Stripe-Account": account} if account else {},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def pages(self, collection: str, since: datetime | None) -> Iterator[Page]:
        """Return the records created since LOOKBACK before `since`, page by page."""
        wanted: dict[str, str] = {"limit": str(self._limit)}
        if since is not None:
            wanted["created[gte]"] = str(int((since - LOOKBACK).timestamp()))
        while True:
            answer = self._get(collection, wanted)
            try:
                records = [record_of(data) for data in answer["data"]]
                more = bool(answer["has_more"])
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise Unavailable(f"Stripe sent an unexpected answer: {type(error).__name__}") from None
            yield Page(records, records[0].changed_at if records else None)
            if not (more and records):
                return
            wanted["starting_after"] = records[-1].id

    def _get(self, collection: str, wanted: dict[str, str]) -> Any:
        try:
            answer = self._client.get(f"/v1/{collection}", params=wanted)
        except httpx.TransportError as error:
            raise Unavailable(f"Stripe did not answer: {type(error).__name__}", host="Stripe") from None
        if failure := status_error("Stripe", answer.status_code, answer.headers, datetime.now(UTC)):
            raise failure
        try:
            return answer.json()
        except ValueError:
            raise Unavailable("Stripe sent an answer that is no JSON", host="Stripe") from None
