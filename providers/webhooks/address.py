"""Where an outgoing request may go: to the public internet, and nowhere else.

A name is looked up once, every address it has is checked, and the connection is made to a checked address,
so a name that answers differently a moment later (DNS rebinding) gains nothing.
"""

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

from providers.errors import Refused, Unavailable

# Only global unicast space; that leaves out mapped, compatible, NAT64, unique-local, link-local and loopback
# addresses by construction. Inside it, ranges that carry an IPv4 address or lead nowhere are left out too.
_IPV6_PUBLIC = IPv6Network("2000::/3")
_IPV6_NOT_PUBLIC = tuple(
    IPv6Network(n) for n in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16")
)

LONGEST_URL = 2048


def check_url(url: str) -> str | None:
    """Return what is wrong with a webhook's URL, or None; looks nothing up."""
    if len(url) > LONGEST_URL or not url.isprintable() or " " in url:
        return f"a webhook's URL is at most {LONGEST_URL} printable characters without spaces"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "a webhook's URL must be well-formed"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "a webhook's URL must start with https:// or http:// and name a host"
    if parts.username is not None or parts.password is not None:
        return "a webhook's URL must not hold credentials; requests are signed instead"
    if port == 0:
        return "a webhook's URL must not name port 0"
    return None


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether an address belongs to the public internet."""
    if isinstance(address, IPv6Address):
        return address in _IPV6_PUBLIC and not any(address in network for network in _IPV6_NOT_PUBLIC)
    # `is_global` alone lets multicast and 192.0.0.0/24 in part through.
    return (
        address.is_global
        and not (address.is_multicast or address.is_reserved)
        and address.packed[:3] != b"\xc0\x00\x00"
        and address.packed[:3] != b"\xc0\x58\x63"
    )


async def resolve(host: str, port: int, *, allow_private: bool) -> list[str]:
    """Return the addresses of a host, in the order to try them.

    Whatever spelling of an address the resolver understands (one number, octal, hexadecimal) is checked as
    the address it stands for. Raises Refused when one of them is not public, Unavailable when the name does
    not resolve.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Unavailable(f"{host} has no address", host=host) from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not allow_private and not all(_is_public_text(address) for address in addresses):
        raise Refused(f"{host} is not on the public internet")
    return addresses


def _is_public_text(address: str) -> bool:
    # A zone (`fe80::1%eth0`) only ever belongs to a link.
    return "%" not in address and is_public(ip_address(address))
