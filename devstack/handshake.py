"""Is a service ready? Each function speaks its protocol once, and raises while the answer is no."""

import logging

_silent = logging.getLogger("devstack.handshake")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False


def kafka(bootstrap: str) -> None:
    """Raise unless the cluster names at least one broker that accepts clients."""
    from confluent_kafka.admin import AdminClient

    # A refused connection is the expected answer of a broker that starts, so the client's log is not shown.
    client = AdminClient({"bootstrap.servers": bootstrap, "socket.timeout.ms": 2000}, logger=_silent)
    if not client.list_topics(timeout=2).brokers:
        raise ConnectionError("no broker has registered")


def redis(url: str) -> None:
    """Raise unless the server answers PING; it does not while it loads its data."""
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    with Redis.from_url(url, socket_timeout=2, retry=Retry(NoBackoff(), 0)) as client:
        client.ping()


def postgres(url: str) -> None:
    """Raise unless the server runs a query."""
    import psycopg2

    connection = psycopg2.connect(url.replace("postgresql+psycopg2://", "postgresql://"), connect_timeout=2)
    try:
        with connection.cursor() as cursor:
            cursor.execute("select 1")
    finally:
        connection.close()
