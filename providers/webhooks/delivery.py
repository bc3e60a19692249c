"""Posting one event to its receiver."""

import asyncio
import json
import os
import ssl
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from providers.errors import Refused, Unavailable
from providers.http import status_error
from providers.webhooks.address import check_url, resolve
from providers.webhooks.signing import sign

if TYPE_CHECKING:
    import httpx

DEADLINE = timedelta(seconds=15)
"""For the whole exchange, so that a receiver that drips bytes cannot hold a job."""

CONNECT_SECONDS = 5.0
LONGEST_ANSWER_BYTES = 64 * 1024


def event_body(event_type: str, at: datetime, data: Any) -> bytes:
    """Return an event as Standard Webhooks lays it out; the same arguments give the same bytes."""
    event = {"type": event_type, "timestamp": at.astimezone(UTC).isoformat(), "data": data}
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


async def post(url: str, body: bytes, *, organization_id: str, message_id: str, sent_at: datetime) -> int:
    """Post a signed body and return the status, a 2xx.

    Redirects are not followed. Raises RateLimited, Unavailable or Refused; an error names the receiver's host
    and never the rest of its URL, which may hold a token. WEBHOOK_ALLOW_PRIVATE=1 lets requests reach
    addresses of this machine and its networks.
    """
    import httpx

    if problem := check_url(url):
        raise Refused(problem)
    headers = {
        "content-type": "application/json",
        "user-agent": "streams-webhooks/1",
        # The answer is not used; compressed, a small one could unfold into a very large one.
        "accept-encoding": "identity",
        **sign(organization_id, message_id, body, sent_at),
    }
    try:
        target = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError):
        raise Refused("a webhook's URL must be well-formed") from None
    if target.userinfo:
        raise Refused("a webhook's URL must not hold credentials; requests are signed instead")
    host = target.host
    try:
        async with asyncio.timeout(DEADLINE.total_seconds()):
            answer = await _exchange(target, body, headers)
    except TimeoutError:
        raise Unavailable(
            f"{host} did not answer within {DEADLINE.total_seconds():.0f} s", host=host
        ) from None
    except httpx.TransportError as error:
        raise Unavailable(f"{host} did not answer: {type(error).__name__}", host=host) from None
    if failure := status_error(host, answer.status_code, answer.headers, datetime.now(UTC)):
        raise failure
    return answer.status_code


@lru_cache(maxsize=1)
def _authorities(file: str) -> ssl.SSLContext:
    # Reading them takes 20 ms of CPU, which a client of its own for each event would spend each time.
    return ssl.create_default_context(cafile=file)


async def _exchange(target: "httpx.URL", body: bytes, headers: dict[str, str]) -> "httpx.Response":
    import certifi
    import httpx

    port = target.port or (443 if target.scheme == "https" else 80)
    private = os.environ.get("WEBHOOK_ALLOW_PRIVATE") == "1"
    name = target.raw_host.decode("ascii").strip("[]")
    addresses = await resolve(name, port, allow_private=private)
    patience = httpx.Timeout(DEADLINE.total_seconds(), connect=CONNECT_SECONDS)
    # No proxy from the environment: it would look the name up again.
    async with httpx.AsyncClient(
        verify=_authorities(certifi.where()), trust_env=False, follow_redirects=False, timeout=patience
    ) as client:
        for last, address in enumerate(addresses, start=1 - len(addresses)):
            request = client.build_request(
                "POST",
                target.copy_with(host=address),
                content=body,
                headers={**headers, "host": target.netloc.decode("ascii")},
                # The certificate must be the name's, though the connection is to the address.
                extensions={"sni_hostname": name},
            )
            try:
                answer = await client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if last == 0:
                    raise
                continue
            try:
                await _read_bounded(answer)
            finally:
                await answer.aclose()
            return answer
    raise Unavailable(f"{target.host} has no address", host=target.host)


async def _read_bounded(answer: "httpx.Response") -> None:
    """Read the answer to its end, so that the receiver sees it taken, but no further than the bound."""
    read = 0
    async for chunk in answer.aiter_raw():
        read += len(chunk)
        if read > LONGEST_ANSWER_BYTES:
            return
