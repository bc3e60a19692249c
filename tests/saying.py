"""What operators say, for tests of the worker."""

from datetime import datetime, timedelta
from typing import Any

from ratelimit.control import Said
from streams.kills import Kill
from streams.pauses import Pause
from streams.rules import Scope
from tests.rig import Rig

DAY = timedelta(days=1)


def said(one: Pause | Kill, until: datetime | None = None, version: int = 1) -> Said:
    """Return a pause or a kill switch as a worker hears it."""
    return Said(version, one.name, one.text(), until)


async def pause(
    rig: Rig, *, ago: timedelta = timedelta(0), keep: timedelta | None = None, **scope: Any
) -> None:
    """Pause a scope, for so long already, and let the worker hear of it at once."""
    paused = Pause(Scope(**scope), rig.clock() - ago, "ops", "a test")
    await rig.control.say({paused.name: paused.text()}, keep)
    await rig.worker.hear()


async def resume(rig: Rig, **scope: Any) -> None:
    """End the pause of a scope, and let the worker hear of it at once."""
    await rig.control.say({f"pause:{Scope(**scope)}": None}, DAY)
    await rig.worker.hear()


async def kill(rig: Rig, selector: str, kill_id: str = "1") -> None:
    """Set a kill switch, and let the worker hear of it at once."""
    switch = Kill.of(kill_id, selector, since=rig.clock(), by="ops", reason="a test")
    await rig.control.say({switch.name: switch.text()}, None)
    await rig.worker.hear()


async def lift(rig: Rig, kill_id: str = "1") -> None:
    """Lift a kill switch, and let the worker hear of it at once."""
    await rig.control.say({f"kill:{kill_id}": None}, DAY)
    await rig.worker.hear()
