"""Header names that are no UTF-8, as clients in other languages may write them, on the real broker."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest

from streams.client import SyncJobs
from streams.queues import CRITICAL
from tests.handlers import Work
from tests.processes import Pipeline, wait_until

pytestmark = pytest.mark.stack

WRITE_ODD = """
import asyncio, sys
from aiokafka import AIOKafkaProducer

class Odd(str):
    def encode(self, *_):
        return bytes([255, 254])

async def main():
    producer = AIOKafkaProducer(bootstrap_servers=sys.argv[1])
    await producer.start()
    for topic in sys.argv[2:]:
        for partition in await producer.partitions_for(topic):
            await producer.send_and_wait(topic, b"garbage", partition=partition, headers=[(Odd("odd"), b"data")])
    await producer.stop()

asyncio.run(main())
"""


def test_neither_workers_nor_retries_stop_at_an_odd_header_name(pipeline: Pipeline) -> None:
    worker = pipeline.worker().start()
    written = subprocess.run(
        [sys.executable, "-c", WRITE_ODD, pipeline.settings.kafka_bootstrap_servers, CRITICAL.topic, "jobs.retry.1s"],
        env={**os.environ, "AIOKAFKA_NO_EXTENSIONS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert written.returncode == 0, written.stderr
    partitions = pipeline.settings.kafka_partitions
    with SyncJobs(pipeline.settings) as jobs:
        for number in range(9):
            jobs.publish(Work(), organization_id=f"org-{number}")
            jobs.publish(Work(), organization_id=f"org-{number}", delay=timedelta(seconds=1.5))
    pipeline.wait_for("completed", 18)
    wait_until(
        lambda: len(pipeline.records(CRITICAL.dead_letter_topic)) == partitions, 20, "the odd ones are buried"
    )
    assert worker.process.poll() is None
    assert "names no queue and stays behind" in worker.said()
    assert worker.terminate() == 0
