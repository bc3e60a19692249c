"""Carry out the faults of a plan, and heal the world afterwards."""

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from tests.simulation.member import Member
from tests.simulation.plan import Fault

if TYPE_CHECKING:
    from tests.simulation.world import World


class Faults:
    """What goes wrong in one world."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.refused: set[str] = set()
        """Processes whose broker refused a record: their workers end, and are meant to."""
        self._restarts: list[float] = []

    async def happen(self) -> None:
        """Let every fault happen at its time."""
        loop = self._world.loop
        for fault in self._world.plan.faults:
            while loop.time() < fault.at:
                self.replace_the_dead()
                await asyncio.sleep(min(0.3, max(0.0, fault.at - loop.time()) + 1e-6))
            self._carry_out(fault)

    def _carry_out(self, fault: Fault) -> None:
        world = self._world
        alive = world.alive()
        if not alive:
            return
        member = alive[fault.member % len(alive)]
        process, network, until = member.process, member.connection.network, world.loop.time() + fault.size
        world.tell(f"fault: {fault.kind} {process.name} {fault.size:.3f} {fault.flag}")
        match fault.kind:
            case "crash":
                process.steps_left = int(fault.size)
            case "crash in produce":
                member.producer.die_after_appends = int(fault.size)
            case "crash in redis":
                member.connection.die_after_calls = int(fault.size)
            case "crash in forwarder":
                member.forwarder.die_before_commit = True
            case "stop":
                world.spawn(process, member.stop())
            case "join":
                if len(alive) < 4:
                    world.start_member()
            case "rebalance":
                world.group.rebalance()
            case "pause":
                process.stop()
                world.loop.call_later(fault.size, process.go_on)
            case "cut":
                world.group.cut(process.name, fault.size)
            case "redis down":
                for one in alive:
                    one.connection.network.down_until = until
            case "redis down for one":
                network.down_until = until
            case "redis slow":
                network.slow_until = until
            case "redis lossy":
                network.lossy_until = until
            case "flush":
                world.redis.flush()
            case "broker down":
                world.broker.healthy = False
                world.loop.call_later(min(fault.size, 4.0), self._mend_the_broker)
            case "broker refuses":
                member.producer.refuse_next = True
                self.refused.add(process.name)
            case "commits lost":
                world.group.lose_commits[process.name] = (int(fault.size), fault.flag)
            case "clock jump":
                member.jump(timedelta(seconds=fault.size))

    def _mend_the_broker(self) -> None:
        self._world.broker.healthy = True

    def replace_the_dead(self) -> None:
        """Start a process for each that ended, as a supervisor does, a while later."""
        world = self._world
        wanted = 1 if world.healed_at is None and world.loop.time() < 3 else max(1, world.plan.members)
        missing = wanted - len(world.alive()) - len(self._restarts)
        for _ in range(missing):
            self._restarts.append(world.loop.time() + world.chance.uniform(0.1, 1.5))
        due = [at for at in self._restarts if at <= world.loop.time()]
        for at in due:
            self._restarts.remove(at)
            world.start_member()

    def heal(self) -> None:
        """Let everything answer and everybody go on; what has not happened yet happens no more."""
        world = self._world
        world.broker.healthy = True
        for member in world.alive():
            self._heal(member)
        world.group.mend()

    def _heal(self, member: Member) -> None:
        process, network = member.process, member.connection.network
        process.steps_left = None
        member.producer.die_after_appends = member.connection.die_after_calls = None
        member.producer.refuse_next = member.forwarder.die_before_commit = False
        network.down_until = network.slow_until = network.lossy_until = 0.0
        if process.stopped:
            process.go_on()
