"""Where a webhook may go, in every spelling of an address."""

from ipaddress import ip_address

import pytest

from providers.errors import Refused, Unavailable
from providers.webhooks import check_url
from providers.webhooks.address import is_public, resolve


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "172.15.0.1", "172.32.0.1", "2606:4700:4700::1111"]
)
def test_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.0.9", "192.88.99.1", "198.18.0.1",
        "192.0.2.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "fe80::1", "fc00::1", "fd00:ec2::254",
        "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001::1", "2001:db8::1", "ff02::1", "100::1", "5f00::1",
    ],
)  # fmt: skip
def test_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.1", "017700000001",
        "::1", "::ffff:127.0.0.1", "::ffff:7f00:1", "0", "0.0.0.0", "169.254.169.254", "2852039166", "10.1",
        "64:ff9b::a9fe:a9fe",
    ],
)  # fmt: skip
async def test_every_spelling_of_an_inside_address_is_refused(host: str) -> None:
    with pytest.raises(Refused, match="not on the public internet"):
        await resolve(host, 80, allow_private=False)
    assert await resolve(host, 80, allow_private=True)


async def test_a_public_address_in_an_odd_spelling_is_the_address_it_stands_for() -> None:
    assert await resolve("134744072", 443, allow_private=False) == ["8.8.8.8"]


async def test_one_inside_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    async def both(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", (address, 443)) for address in ("8.8.8.8", "10.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", both)
    with pytest.raises(Refused):
        await resolve("rebinding.example", 443, allow_private=False)


async def test_a_name_without_address_may_have_one_later() -> None:
    for name in ("no-such-name.invalid", "x" * 64 + ".example", "a..b"):
        with pytest.raises(Unavailable):
            await resolve(name, 443, allow_private=False)


@pytest.mark.parametrize(
    "url", ["https://acme.example/hook?x=1", "http://acme.example:8080", "https://bücher.example/"]
)
def test_urls(url: str) -> None:
    assert check_url(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "", "acme.example", "ftp://acme.example", "file:///etc/passwd", "gopher://acme.example", "https://",
        "https:///path", "https://user:secret@acme.example", "https://@acme.example", "https://acme.example:0",
        "https://acme.example:99999", "https://acme.example/a b", "https://acme.example/\r\nX: y", "https://[::1",
        "https://acme.example/" + "x" * 2048,
    ],
)  # fmt: skip
def test_no_urls(url: str) -> None:
    problem = check_url(url)
    assert problem
    assert "secret" not in problem
