"""A member leaves its group whatever is under way, and whatever it has forgotten."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.client import ConnectionGroup
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import GroupCoordinatorNotAvailableError
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.group import JoinGroupRequest, LeaveGroupRequest

from streams.coordinator import Coordinator

JOINS = JoinGroupRequest("workers", 6_000, 60_000, "member-1", None, "consumer", [])
COMMITS = OffsetCommitRequest("workers", 1, "member-1", -1, [])


class Broker:
    """Keeps what it is asked and on which connection, and answers what is not `unanswered`."""

    def __init__(self) -> None:
        self.asked: list[tuple[type[Any], ConnectionGroup]] = []
        self.unanswered: tuple[type[Any], ...] = ()
        self.cluster = SimpleNamespace(add_listener=lambda _: None)

    async def send(self, node_id: int, request: Any, *, group: ConnectionGroup) -> Any:
        self.asked.append((type(request), group))
        if isinstance(request, self.unanswered):
            await asyncio.Event().wait()
        return SimpleNamespace(error_code=0)


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
async def coordinator(broker: Broker) -> AsyncIterator[Coordinator]:
    """Yield that of a member."""
    coordinator = Coordinator(broker, SubscriptionState(), group_id="workers")
    coordinator.coordinator_id, coordinator.member_id, coordinator.generation = 1, "member-1", 1
    yield coordinator
    await coordinator.close()


async def test_it_leaves_and_commits_beside_a_call_that_waits_for_others(
    coordinator: Coordinator, broker: Broker
) -> None:
    broker.unanswered = (JoinGroupRequest,)
    joining = asyncio.create_task(coordinator._send_req(JOINS))
    await asyncio.sleep(0)
    await coordinator._send_req(COMMITS)
    await coordinator.close()
    joining.cancel()
    assert broker.asked == [
        (JoinGroupRequest, ConnectionGroup.COORDINATION),
        (OffsetCommitRequest, ConnectionGroup.DEFAULT),
        (LeaveGroupRequest, ConnectionGroup.DEFAULT),
    ]


async def test_it_leaves_although_it_has_forgotten_who_it_was(
    coordinator: Coordinator, broker: Broker
) -> None:
    coordinator.reset_generation()
    assert not coordinator.is_member
    await coordinator.close()
    assert [kind for kind, _ in broker.asked] == [LeaveGroupRequest]


async def test_it_leaves_once(coordinator: Coordinator, broker: Broker) -> None:
    coordinator.maybe_leave_group()
    await asyncio.sleep(0)
    await coordinator.close()
    assert [kind for kind, _ in broker.asked] == [LeaveGroupRequest]


async def test_who_departs_leaves_instead_of_joining_again(coordinator: Coordinator, broker: Broker) -> None:
    coordinator.depart()
    joining = asyncio.create_task(coordinator._send_req(JOINS))
    await asyncio.sleep(0)
    assert [kind for kind, _ in broker.asked] == [LeaveGroupRequest]
    await coordinator.close()
    with pytest.raises(GroupCoordinatorNotAvailableError):
        await joining


async def test_a_broker_that_does_not_answer_keeps_nobody(
    coordinator: Coordinator,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("streams.coordinator.LEAVE_SECONDS", 0.01)
    broker.unanswered = (LeaveGroupRequest,)
    await coordinator.close()
    assert "workers waits until the session of this worker runs out" in caplog.text
