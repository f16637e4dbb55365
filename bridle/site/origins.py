"""Whether a request that changes something comes from a page of ours: no other site may send it in somebody's name.

A browser says where a request comes from in Sec-Fetch-Site and, older ones, in Origin; no page can forge either. Programs send neither,
and those that show a token in place of a cookie need not: no browser adds a token by itself. (OWASP, CSRF cheat sheet: "Fetch Metadata".)
"""

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?")


def is_foreign(method: str, headers: Mapping[str, str], scheme: str, host: str) -> bool:
    """`scheme` and `host` are those by which the browser knows us: of what a trusted proxy forwards, where there is one."""
    if method in SAFE_METHODS or headers.get("authorization", "").lower().startswith("bearer "):
        return False
    if (site := headers.get("sec-fetch-site")) is not None:
        return site not in ("same-origin", "none")
    if (origin := headers.get("origin")) is None:
        return False  # no browser: every one that is still in use sends one of the two with a form
    return (ours := address(f"{scheme}://{host}")) is None or address(origin) != ours


def address(origin: str) -> tuple[str, str, int] | None:
    """Scheme, host and port, compared as wholes: "https://a.example.evil.com" begins with "https://a.example"."""
    try:
        parts = urlsplit(origin)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        return None
    return (parts.scheme, (parts.hostname or "").lower(), port) if parts.hostname else None
