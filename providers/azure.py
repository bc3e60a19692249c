"""What the Azure services behind providers have in common: their settings, and what their answers mean."""

import os
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from providers.errors import ProviderError, RateLimited, Refused, Unavailable

if TYPE_CHECKING:
    import httpx
    from pydantic import BaseModel

    Answer = TypeVar("Answer", bound=BaseModel)

CONNECT_SECONDS = 10.0
DEFAULT_RETRY_AFTER = timedelta(seconds=10)
LONGEST_RETRY_AFTER = timedelta(hours=1)


def setting(name: str) -> str:
    """Return an environment variable; raises ValueError when it is missing."""
    value = os.environ.get(name, "").strip()
    if not value:
        raise ValueError(f"{name} is not set; the azure provider needs it")
    return value


def client(headers: Mapping[str, str], *, timeout: timedelta) -> "httpx.Client":
    """Return an HTTP client that follows no redirect: one would carry the key to another host."""
    import httpx

    limits = httpx.Timeout(timeout.total_seconds(), connect=CONNECT_SECONDS)
    return httpx.Client(headers=headers, timeout=limits, follow_redirects=False)


def call(service: str, send: Callable[[], "httpx.Response"]) -> "httpx.Response":
    """Return the answer of a request that the service accepted, or raise what its refusal means.

    A message names the service, the status and the service's error codes; never its prose, which may quote the
    input, nor a header.
    """
    import httpx

    try:
        response = send()
    except httpx.TimeoutException as error:
        raise Unavailable(
            f"{service} did not answer in time ({type(error).__name__})", host=service
        ) from None
    except httpx.TransportError as error:
        raise Unavailable(f"{service} cannot be reached ({type(error).__name__})", host=service) from None
    if response.is_success:
        return response
    raise refusal(service, response)


def refusal(service: str, response: "httpx.Response") -> ProviderError:
    """Return the error that an unsuccessful answer stands for."""
    said = f"{service} answered {response.status_code} {error_codes(response)}".rstrip()
    match response.status_code:
        case 429:
            return RateLimited(said, retry_after(response, now=datetime.now(UTC)))
        case 401 | 403:
            # The key or its rights are wrong, not the request: it succeeds once they are put right.
            return Unavailable(f"{said}: check the key and what it may do")
        case 408 | 409:
            return Unavailable(said)
        case status if status >= 500:
            return Unavailable(said, host=service)
        case _:
            return Refused(said)


def retry_after(
    response: "httpx.Response", *, now: datetime, default: timedelta = DEFAULT_RETRY_AFTER
) -> timedelta:
    """Return the wait that an answer asks for, in milliseconds, seconds or as a date."""
    wait = default
    if re.fullmatch(r"\d{1,9}", milliseconds := response.headers.get("retry-after-ms", "")):
        wait = timedelta(milliseconds=int(milliseconds))
    elif re.fullmatch(r"\d{1,6}", value := response.headers.get("retry-after", "")):
        wait = timedelta(seconds=int(value))
    elif value:
        try:
            wait = parsedate_to_datetime(value) - now
        except (ValueError, TypeError):
            wait = default
    return min(max(wait, timedelta()), LONGEST_RETRY_AFTER)


def error_codes(response: "httpx.Response") -> str:
    """Return the codes in an error document, such as "InvalidRequest/InvalidContent"."""
    try:
        document = response.json()
    except ValueError:
        return ""
    return codes_in(document)


def codes_in(document: Any) -> str:
    """Return the codes of `error` and the `innererror` levels below it, the outermost first."""
    codes: list[str] = []
    level = document.get("error") if isinstance(document, dict) else None
    while isinstance(level, dict) and len(codes) < 4:
        if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", str(level.get("code", ""))):
            codes.append(str(level["code"]))
        level = level.get("innererror")
    return "/".join(codes)


def parsed(service: str, model: "type[Answer]", content: str | bytes) -> "Answer":
    """Return the answer as its model; raises Unavailable when it does not fit, without quoting it."""
    from pydantic import ValidationError

    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        where = ", ".join(
            sorted({".".join(map(str, item["loc"])) or "document" for item in error.errors()})[:5]
        )
        raise Unavailable(f"{service} gave an answer that cannot be used: {where}") from None
