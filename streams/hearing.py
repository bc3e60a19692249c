"""How what operators say is kept by those who hear it."""

import logging
from collections.abc import Callable
from typing import TypeVar

from ratelimit.control import Said

log = logging.getLogger(__name__)

T = TypeVar("T")


def keep(known: dict[str, T], said: Said, of_said: Callable[[Said], T], otherwise: str) -> T | None:
    """Keep under its name what was said, or forget what was taken back; returns what is kept now, if it was said.

    What `of_said` raises ValueError, KeyError or TypeError for changes nothing; `otherwise` says what that means.
    """
    if said.value is None:
        known.pop(said.name, None)
        return None
    try:
        found = known[said.name] = of_said(said)
    except (ValueError, KeyError, TypeError) as error:
        log.error("%s is not understood, so %s: %r", said.name, otherwise, error)
        return None
    return found
