"""Windows for tests, and what fills them."""

from typing import Any

from streams.delivery import Delivery
from streams.window import Window
from tests.deliveries import delivery


def window(records: int = 1000, size_bytes: int = 1_000_000, **options: Any) -> Window:
    return Window(records=records, size_bytes=size_bytes, **options)


def fill(into: Window, **counts: int) -> None:
    for organization, count in counts.items():
        for number in range(count):
            into.add(delivery(organization, number))


def ids(taken: list[Delivery]) -> list[str]:
    return [one.job_id for one in taken]
