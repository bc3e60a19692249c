"""What unit tests of the core share."""

from collections.abc import Iterator
from unittest.mock import patch

import pytest

from streams.jobs import HANDLERS, TYPE_OF_PAYLOAD


@pytest.fixture
def no_handlers() -> Iterator[None]:
    """Let a test have handlers of its own and no others, and no other test see them."""
    with patch.dict(HANDLERS, clear=True), patch.dict(TYPE_OF_PAYLOAD, clear=True):
        yield
