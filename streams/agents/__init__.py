"""One module per queue: its payloads, and the handlers that carry its jobs out."""

import importlib
import os
import sys
from collections.abc import Sequence

from streams.errors import ConfigError

_QUEUES = "critical documents ai reports emails webhooks integrations maintenance scheduled"
MODULES = tuple(f"streams.agents.{name}" for name in _QUEUES.split())


def load(extra: Sequence[str] = ()) -> None:
    """Import every handler module, so that `streams.jobs.HANDLERS` is complete.

    `extra` names further modules with handlers of your own (setting HANDLER_MODULES). Raises ConfigError when
    one of those cannot be imported.
    """
    for module in MODULES:
        importlib.import_module(module)
    if extra and "" not in sys.path and os.getcwd() not in sys.path:
        # A console script's path starts at its own folder, not where it was called.
        sys.path.insert(0, os.getcwd())
    for module in extra:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(
                f"HANDLER_MODULES names {module!r}, which cannot be imported: {error}; "
                "expected dotted module names on the Python path, separated by commas"
            ) from error
