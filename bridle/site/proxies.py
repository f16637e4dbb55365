"""What a proxy before us says of a request: believed of those alone that the owner named.

    X-Forwarded-For      who asks: the last address that is none of the proxies' own
    X-Forwarded-Proto    whether the browser speaks https with the proxy
    X-Forwarded-Host     the name and port by which the browser knows us

Of several values of the last two the last one counts, which the nearest proxy wrote. From anybody else they are left unread.
"""

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from bridle.core.errors import UsageError

Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]


def networks(addresses: Sequence[str]) -> Networks:
    """Raises UsageError for what is neither an address nor a network."""
    try:
        return [ipaddress.ip_network(address, strict=False) for address in addresses]
    except ValueError as error:
        raise UsageError(f"a proxy is named by its address, or by its network (10.0.0.0/8), but {error}") from error


class Forwarded:
    """Outermost: puts what a trusted proxy says in the place of what the connection says."""

    def __init__(self, app: ASGIApp, trusted: Networks) -> None:
        self.app, self.trusted = app, trusted

    def is_trusted(self, address: str) -> bool:
        try:
            return any(ipaddress.ip_address(address) in network for network in self.trusted)
        except ValueError:
            return False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope.get("client") and self.is_trusted(scope["client"][0]):
            scope = {**scope, **self.forwarded(scope)}
        await self.app(scope, receive, send)

    def forwarded(self, scope: Scope) -> Scope:
        found: Scope = {}
        hops, protocols, hosts = (forwarded_values(scope, name) for name in ("for", "proto", "host"))
        if client := next((hop for hop in reversed(hops) if not self.is_trusted(hop)), None):
            found["client"] = (client, 0)
        if protocols and protocols[-1] in ("http", "https"):
            found["scheme"] = protocols[-1]
        if hosts:
            others = [(name, value) for name, value in scope["headers"] if name != b"host"]
            found["headers"] = [*others, (b"host", hosts[-1].encode("latin-1"))]
        return found


def forwarded_values(scope: Scope, name: str) -> list[str]:
    lines = Headers(scope=scope).getlist(f"x-forwarded-{name}")
    return [value for value in (part.strip() for line in lines for part in line.split(",")) if value]
