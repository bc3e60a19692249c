"""Where aiokafka's group coordinator falls short: a member that leaves while others are waited for."""

import asyncio
import logging
from typing import Any

from aiokafka.client import ConnectionGroup
from aiokafka.consumer import group_coordinator
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.group import JoinGroupRequest, LeaveGroupRequest, SyncGroupRequest

log = logging.getLogger(__name__)

LEAVE_SECONDS = 3.0
"""How long the broker has to take note of one that leaves; otherwise its session runs out."""


class Coordinator(group_coordinator.GroupCoordinator):  # type: ignore[misc]
    """Aiokafka's coordinator, which leaves its group whatever is under way.

    Who joins is answered when all others have joined, and its connection is occupied until then. aiokafka 0.14.0
    commits behind that, which is too late; forgets over it who it is; waits for the answer before it leaves; and
    cannot leave when it has forgotten. The group counts on a member that is gone until its session has run out:
    its partitions stand still, and all of them when it was to assign them.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self._last_member_id = ""
        self._occupied = False
        self._departs = False
        super().__init__(*args, **options)

    @property
    def is_member(self) -> bool:
        """Return whether there is a membership to commit with."""
        return bool(self.member_id)

    def depart(self) -> None:
        """Leave at the next rebalance instead of joining again."""
        self._departs = True

    def reset_generation(self) -> None:
        self._last_member_id = self.member_id or self._last_member_id
        super().reset_generation()

    async def _send_req(self, request: Any) -> Any:
        if isinstance(request, JoinGroupRequest | SyncGroupRequest):
            return await self._meet(request)
        if self._occupied and isinstance(request, OffsetCommitRequest | LeaveGroupRequest):
            return await self._client.send(self.coordinator_id, request, group=ConnectionGroup.DEFAULT)
        return await super()._send_req(request)

    async def _meet(self, request: Any) -> Any:
        if self._departs and isinstance(request, JoinGroupRequest):
            await self._maybe_leave_group()
            await asyncio.wait([self._closing])
            raise GroupCoordinatorNotAvailableError
        self._occupied = True
        try:
            return await super()._send_req(request)
        finally:
            self._occupied = False

    async def _maybe_leave_group(self) -> None:
        member_id = self.member_id or self._last_member_id
        if member_id and self.coordinator_id is not None and self._group_instance_id is None:
            try:
                async with asyncio.timeout(LEAVE_SECONDS):
                    await self._send_req(LeaveGroupRequest(self.group_id, member_id))
            except (KafkaError, TimeoutError) as error:
                log.warning("%s waits until the session of this worker runs out: %r", self.group_id, error)
        self.reset_generation()
        self._last_member_id = ""

    async def close(self) -> None:
        """Leave the group and end."""
        self.depart()
        await self._maybe_leave_group()
        await super().close()
