"""How Redis is reached: one server, or the master that Sentinels name.

    redis://[[user]:password@]host[:port][/database]             one server
    rediss://…                                                   the same over TLS
    unix://[[user]:password@]/path[?db=database]                 one server, by a socket
    redis+sentinel://[[user]:password@]host[:port][,host2[:port2]…]/service[/database]
    rediss+sentinel://…                                          TLS to the Sentinels and to the servers

User and password are those of the servers; `?sentinel_username=…&sentinel_password=…` are the Sentinels' own. Other
options are those of redis-py, such as `ssl_ca_certs`. The form with `+sentinel` is a convention of several tools: no
standard has one.
"""

import re
from datetime import timedelta
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

SENTINEL_PORT = 26379

_SENTINEL = re.compile(
    r"(?P<scheme>rediss?)\+sentinel://(?:(?P<user>[^@/]*)@)?(?P<hosts>[^/@]+)/(?P<service>[^/?]+)"
    r"(?:/(?P<database>\d+))?(?:\?(?P<options>.*))?"
)
_HOST = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::(?P<port>\d+))?")


class MasterPool(SentinelConnectionPool):
    """Connections to whichever server is the master when they are opened."""

    async def aclose(self) -> None:
        """Close the connections, those to the Sentinels, too."""
        await super().aclose()
        for sentinel in self.sentinel_manager.sentinels:
            await sentinel.aclose()


def pool_of(url: str, timeout: timedelta) -> ConnectionPool:
    """Return connections for a URL as above; none is opened yet. Raises ValueError, without the password."""
    options: dict[str, Any] = {
        "socket_connect_timeout": timeout.total_seconds(),
        "socket_timeout": None,  # each call has one deadline over all it does
        "health_check_interval": 15,
        "retry": Retry(NoBackoff(), 0),  # of connecting; whoever asked asks again
    }
    if "+sentinel://" in url:
        return _master_pool(url, options)
    return ConnectionPool.from_url(url, **options)


def _master_pool(url: str, options: dict[str, Any]) -> MasterPool:
    match = _SENTINEL.fullmatch(url)
    hosts = [_HOST.fullmatch(host.strip()) for host in match["hosts"].split(",")] if match else []
    if match is None or not all(hosts):
        raise ValueError(
            "expected a URL such as redis+sentinel://user:password@host:26379,host2:26379/service/0, got another"
        )
    # Users, databases and options are as in any other URL, so the library reads them.
    server = (
        f"{match['scheme']}://{match['user'] or ''}@host/{match['database'] or 0}?{match['options'] or ''}"
    )
    stated: dict[str, Any] = dict(parse_url(server))
    del stated["host"]
    tls = stated.pop("connection_class", None) is not None
    own = {name: stated.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    shared = {name: value for name, value in stated.items() if name.startswith("ssl_")}
    addresses = [(host["host"].strip("[]"), int(host["port"] or SENTINEL_PORT)) for host in hosts if host]
    # A Sentinel that hangs is given up in good time, so that the next one can be asked.
    patience_s = options["socket_connect_timeout"] / 4
    manager = Sentinel(  # type: ignore[no-untyped-call]
        addresses,
        sentinel_kwargs={
            **own, **shared, "ssl": tls, "socket_timeout": patience_s, "socket_connect_timeout": patience_s,
            "retry": options["retry"],
        },
    )  # fmt: skip
    return MasterPool(match["service"], manager, ssl=tls, **stated, **options)  # type: ignore[no-untyped-call]
