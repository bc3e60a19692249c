"""What unit tests of the core share."""

from collections.abc import Iterator
from unittest.mock import patch

import pytest

from streams.agents import MODULES
from streams.jobs import HANDLERS, TYPE_OF_PAYLOAD
from tests.rig import Slow, handle_slow


@pytest.fixture
def shipped_handlers() -> Iterator[None]:
    """Let a test see the handlers that the project ships and none that other tests have registered."""
    shipped = {name: one for name, one in HANDLERS.items() if one.function.__module__ in MODULES}
    payloads = {kind: name for kind, name in TYPE_OF_PAYLOAD.items() if name in shipped}
    with patch.dict(HANDLERS, shipped, clear=True), patch.dict(TYPE_OF_PAYLOAD, payloads, clear=True):
        yield


@pytest.fixture
def no_handlers() -> Iterator[None]:
    """Let a test have handlers of its own and no others, and no other test see them."""
    with patch.dict(HANDLERS, clear=True), patch.dict(TYPE_OF_PAYLOAD, clear=True):
        yield


@pytest.fixture
def slow(no_handlers: None) -> Slow:
    """Give a test the one handler that it needs, whose jobs with a number wait."""
    return handle_slow()
