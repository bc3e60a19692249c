"""What tests of admission share: each runs over the model and over Redis."""

import secrets
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

import devstack
from ratelimit.model import ModelAdmission
from ratelimit.redis import RedisAdmission
from tests.admission import LEASE, Clock, Subject


@pytest.fixture(params=["model", pytest.param("redis", marks=pytest.mark.stack)])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    clock = Clock()
    if request.param == "model":
        yield Subject(ModelAdmission(lease=LEASE, clock=clock), clock)
        return
    stack: devstack.Stack = request.getfixturevalue("stack")
    prefix = f"test-{secrets.token_hex(6)}"
    redis = Redis.from_url(stack.redis)
    admission = RedisAdmission.from_url(stack.redis, prefix=prefix, lease=LEASE, clock=clock)
    subject = Subject(admission, clock, redis, prefix)
    yield subject
    await subject.flush()
    await admission.close()
    await redis.aclose()
