"""QuickBooks Online's accounting API, version 3."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Self

import httpx

from providers.errors import Unavailable
from providers.http import status_error
from providers.quickbooks import record_of
from providers.records import Page, instant

TIMEOUT_SECONDS = 30.0
MINOR_VERSION = "75"
MAX_RESULTS = 1000
"""The most that the API returns at once."""


class QuickBooksOnline:
    """The records of one company, by `GET /v3/company/{realm}/query`."""

    def __init__(self, url: str, realm_id: str, access_token: str, *, max_results: int = MAX_RESULTS) -> None:
        self._max_results = max_results
        self._path = f"/v3/company/{realm_id}/query"
        self._client = httpx.Client(
            base_url=url,
            timeout=TIMEOUT_SECONDS,
            headers={"Authorization": f"Bearer {access_token}", "Accept": "application/json"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def pages(self, collection: str, since: datetime | None) -> Iterator[Page]:
        """Return the records that changed at or after `since`, page by page.

        Ordered by Id: ordered by time of change, a record that changes meanwhile would move to the end and
        shift another one into a page that was read already.
        """
        changed = (
            f" WHERE MetaData.LastUpdatedTime >= '{since.astimezone(UTC).isoformat(timespec='seconds')}'"
            if since
            else ""
        )
        position = 1
        while True:
            answer = self._query(
                f"SELECT * FROM {collection}{changed} ORDERBY Id"
                f" STARTPOSITION {position} MAXRESULTS {self._max_results}"
            )
            try:
                found = answer["QueryResponse"].get(collection, [])
                page = Page([record_of(data) for data in found], instant(answer["time"]))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise Unavailable(f"QuickBooks sent an unexpected answer: {type(error).__name__}") from None
            yield page
            if len(found) < self._max_results:
                return
            position += len(found)

    def _query(self, query: str) -> Any:
        try:
            answer = self._client.get(self._path, params={"query": query, "minorversion": MINOR_VERSION})
        except httpx.TransportError as error:
            raise Unavailable(
                f"QuickBooks did not answer: {type(error).__name__}", host="QuickBooks"
            ) from None
        if failure := status_error("QuickBooks", answer.status_code, answer.headers, datetime.now(UTC)):
            raise failure
        try:
            return answer.json()
        except ValueError:
            raise Unavailable("QuickBooks sent an answer that is no JSON", host="QuickBooks") from None
