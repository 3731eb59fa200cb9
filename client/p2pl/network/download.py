"""Fetching a file of known size from the web, from whoever a stranger's session file names.

The author of a session file makes everybody who joins ask for what stands in `url-list`. So the
answer is read as it is on the wire, never more of it than the size, against a clock. A redirect
leads to the public internet or stays where it was, so that nothing in the joining person's own
network is asked that the session file itself does not name in the open; and link-local addresses,
where clouds tell machines their secrets, are never asked.
"""

import asyncio
import ipaddress
import ssl
from pathlib import Path
from typing import TypeAlias

import httpx

from p2pl.errors import InputError, NetworkError, wrong
from p2pl.network import web

MAX_REDIRECTS = 5
IDLE_S = 20.0  # chosen: nothing comes for so long
# In all: half a minute for names, handshakes and redirects, and then no slower than a bad line.
GRACE_S = 30.0
SLOWEST_BYTES_S = 65_536

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


def deadline_s(size: int) -> float:
    """Returns how long a file of so many bytes may take, in seconds."""
    return GRACE_S + size / SLOWEST_BYTES_S


async def download(url: str, size: int, *, name: str, authorities: Path | None) -> bytes:
    """Returns at most `size` bytes from `url`; a longer answer is refused without reading it.

    Args:
        url: as a session file names it; where it ends in /, `name` is appended (BEP 19).
        size: of the file, bytes.
        name: of the file.
        authorities: see `web.trust`.

    Raises:
        NetworkError: it cannot be had from there; the message says why.
        InputError: `authorities` is none.
    """
    try:
        async with asyncio.timeout(deadline_s(size)):
            return await _follow(_start(url, name), size, authorities)
    except TimeoutError as fault:
        raise NetworkError(f"not all there after {deadline_s(size):.0f} s") from fault
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as fault:
        reason = f"{type(fault).__name__}: {fault}".rstrip(": ")
        raise NetworkError(reason + web.advice(fault)) from fault


def _start(url: str, name: str) -> httpx.URL:
    try:
        return web.parse_url(url + name if url.endswith("/") else url)
    except InputError as fault:
        raise NetworkError(str(fault)) from fault


async def _follow(start: httpx.URL, size: int, authorities: Path | None) -> bytes:
    """Returns what stands at `start`, or where it leads to."""
    url = start
    for _ in range(1 + MAX_REDIRECTS):
        address = await _look_up(url)
        if _origin(url) != _origin(start) and not address.is_global:
            raise NetworkError(
                wrong("redirect", got=f"{url} ({address})", allowed="an address of the internet")
            )
        async with (
            _client(url, authorities) as client,
            client.stream(
                "GET",
                url.copy_with(host=str(address)),  # and no other, whatever the name says next time
                headers={"host": url.netloc.decode("ascii"), "accept-encoding": "identity"},
                extensions={"sni_hostname": url.raw_host.decode("ascii")},
            ) as answer,
        ):
            if not answer.has_redirect_location:
                return await _read(answer, size)
            url = _next(url, answer.headers["location"])
    raise NetworkError(wrong("redirects", got="more", allowed=f"{MAX_REDIRECTS} at most"))


def _client(url: httpx.URL, authorities: Path | None) -> httpx.AsyncClient:
    """Returns a client for one answer, which reads no environment; plain HTTP trusts nobody."""
    is_secure = url.scheme == "https"
    trust = web.trust(authorities) if is_secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return httpx.AsyncClient(verify=trust, trust_env=False, timeout=IDLE_S)


def _next(url: httpx.URL, location: str) -> httpx.URL:
    """Returns where a redirect leads to."""
    try:
        found = web.parse_url(str(url.join(location)))
    except (InputError, httpx.InvalidURL, ValueError) as fault:
        raise NetworkError(f"redirect: {fault}") from fault
    allowed = ("https",) if url.scheme == "https" else ("http", "https")
    if found.scheme not in allowed:
        raise NetworkError(wrong("redirect", got=str(found), allowed=" or ".join(allowed)))
    return found


def _origin(url: httpx.URL) -> tuple[str, bytes, int | None]:
    return url.scheme, url.raw_host, url.port


async def _look_up(url: httpx.URL) -> Address:
    """Returns the address that the URL's host stands for.

    Raises:
        NetworkError: it has none that may be asked.
    """
    loop = asyncio.get_running_loop()
    host = url.raw_host.decode("ascii")
    found = await loop.getaddrinfo(host, url.port or 80, proto=6)  # of TCP
    addresses = [ipaddress.ip_address(one[4][0]) for one in found]
    for address in addresses:
        plain = getattr(address, "ipv4_mapped", None) or address
        if not (plain.is_link_local or plain.is_multicast or plain.is_unspecified):
            return plain
    raise NetworkError(wrong("address", got=str(addresses[0]), allowed="one of a web server"))


async def _read(answer: httpx.Response, size: int) -> bytes:
    """Returns the body as it is on the wire, at most `size` bytes of it."""
    if answer.status_code != 200:
        raise NetworkError(f"{answer.status_code} {answer.reason_phrase}".strip())
    encoding = answer.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise NetworkError(wrong("content-encoding", got=encoding, allowed="none"))
    length = answer.headers.get("content-length", "")
    payload = bytearray()
    if length.isdecimal() and len(length) < 16 and int(length) > size:
        raise NetworkError(wrong("answer", got=f"over {size} bytes", allowed=f"{size} bytes"))
    async for part in answer.aiter_raw():
        payload += part
        if len(payload) > size:
            raise NetworkError(wrong("answer", got=f"over {size} bytes", allowed=f"{size} bytes"))
    return bytes(payload)
