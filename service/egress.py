"""The only way out to hosts that a user named: webhooks, downloads by URL.

The name is resolved here, every address that it has must be public, and the connection goes to one of those
addresses and no other: a name that resolves to something else a moment later (DNS rebinding) gains nothing.
TLS is still checked against the name. Redirects are not followed, proxies of the environment not used.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

import httpx2

from service.problems import DestinationRefused, DestinationUnresolved

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host name, as text, best first. Raises OSError if there are none."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_RESOLVE_SECONDS = 10.0
_CONNECT_SECONDS = 5.0
_DEFAULT_PORTS = {"https": 443, "http": 80}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_METADATA = tuple(map(ipaddress.IPv4Network, ("168.63.129.16/32", "192.0.0.0/24")))
"""Metadata services (Azure, Oracle) whose addresses count as public ones."""


async def system_resolve(host: str, port: int) -> list[str]:
    """What the operating system says, which also reads `2130706433` and `0x7f.1` as addresses."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_public(address: str) -> bool:
    """Whether an IP address, also one wrapped in an IPv6 address, is one of the public internet."""
    parsed = _unwrapped(ipaddress.ip_address(address))
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.is_site_local:
        return False
    if parsed.is_multicast or parsed.is_reserved or any(parsed in network for network in _METADATA):
        return False
    return parsed.is_global


def _unwrapped(address: _Address) -> _Address:
    """The IPv4 address that a mapped, 6to4 or NAT64 address stands for; else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


class Egress:
    """Requests to hosts that a user named.

    allowed_hosts: names (or addresses, as written in URLs) that the operator trusts; they may be private and
    may be spoken to without TLS.
    """

    def __init__(self, allowed_hosts: Iterable[str] = (), *, resolve: Resolve = system_resolve) -> None:
        self._allowed = frozenset(host.lower() for host in allowed_hosts)
        self._resolve = resolve
        self._tls = httpx2.create_ssl_context()

    async def admit(self, url: str | httpx2.URL) -> list[str]:
        """The addresses behind `url`, each of which may be connected to.

        Raises DestinationRefused, or DestinationUnresolved if the name has no address.
        """
        parsed = self._checked(url)
        addresses = await self._addresses(parsed)
        if not self._trusts(parsed) and not all(map(is_public, addresses)):
            raise DestinationRefused(
                f"{parsed.host} is no address of the public internet. Name a public host, or have the "
                "operator allow this one (SAUSCAN_EGRESS_ALLOWED_HOSTS)."
            )
        return addresses

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        seconds: float,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> AsyncIterator[httpx2.Response]:
        """Send one request; the block reads the answer, whose size only the block can limit.

        Raises DestinationRefused, DestinationUnresolved, httpx2.HTTPError, and TimeoutError when the request
        and the block together take more than `seconds`.
        """
        async with (
            asyncio.timeout(seconds),
            self._client() as client,
            client.stream(method, url, headers=headers, content=content) as response,
        ):
            yield response

    def _client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            transport=_PinnedTransport(self, self._tls),
            trust_env=False,
            follow_redirects=False,
            timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),
            headers={"User-Agent": "sauscan", "Accept-Encoding": "identity"},
        )

    def _trusts(self, url: httpx2.URL) -> bool:
        return url.host.lower() in self._allowed

    def _checked(self, url: str | httpx2.URL) -> httpx2.URL:
        try:
            parsed = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise DestinationRefused(f"This is no URL: {error}.") from error
        if parsed.scheme not in _DEFAULT_PORTS or not parsed.host:
            raise DestinationRefused("Give an absolute URL that begins with https://.")
        if not 0 < (parsed.port or _DEFAULT_PORTS[parsed.scheme]) < 2**16:
            raise DestinationRefused(f"There is no port {parsed.port}.")
        if parsed.userinfo:
            raise DestinationRefused("Leave user name and password out of the URL.")
        if parsed.scheme == "http" and not self._trusts(parsed):
            raise DestinationRefused("Use https: what is sent in the clear can be read and changed.")
        return parsed

    async def _addresses(self, url: httpx2.URL) -> list[str]:
        host, port = url.raw_host.decode("ascii"), url.port or _DEFAULT_PORTS[url.scheme]
        try:
            async with asyncio.timeout(_RESOLVE_SECONDS):
                addresses = list(await self._resolve(host, port))
        except (OSError, UnicodeError) as error:  # UnicodeError: a label of more than 63 characters
            raise DestinationUnresolved(f"{url.host} has no address that can be found now.") from error
        return addresses


class _PinnedTransport(httpx2.AsyncBaseTransport):
    """Sends a request to an address that was admitted, whatever the name means by then."""

    def __init__(self, egress: Egress, tls: ssl.SSLContext) -> None:
        self._egress = egress
        self._inner = httpx2.AsyncHTTPTransport(verify=tls, limits=httpx2.Limits(max_keepalive_connections=0))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Try the addresses in their order until one takes the connection."""
        failure: httpx2.TransportError | None = None
        for address in await self._egress.admit(request.url):
            try:
                return await self._inner.handle_async_request(_pinned(request, address))
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                failure = error
        assert failure is not None, "a resolver answers with an address or an error"
        raise failure

    async def aclose(self) -> None:
        """Close what is open."""
        await self._inner.aclose()


def _pinned(request: httpx2.Request, address: str) -> httpx2.Request:
    """The request with the address in place of the name; `Host` and the name for TLS stay."""
    return httpx2.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": request.url.raw_host.decode("ascii")},
    )
