"""Rates of what one person, or one address, may ask: token buckets, in this process's memory."""

import ipaddress
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

MOST_KEPT = 10_000  # buckets; of more, those that were not asked for the longest are full again


class RateLimit:
    """At most `burst` at once, and `burst` in `seconds` for long."""

    def __init__(self, burst: int, seconds: float) -> None:
        self.burst, self.rate = burst, burst / seconds
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, key: str) -> float:
        """Takes one, and returns 0; or takes none, and returns the seconds until there is one."""
        now = time.monotonic()
        with self._lock:
            left, at = self._buckets.pop(key, (float(self.burst), now))
            left = min(self.burst, left + (now - at) * self.rate)
            taken = left >= 1
            self._buckets[key] = (left - taken, now)
            if len(self._buckets) > MOST_KEPT:
                self._buckets.popitem(last=False)
        return 0.0 if taken else (1 - left) / self.rate


@dataclass(frozen=True)
class Limits:
    """`pages` and `changes` by person, or by address where nobody signed in; `sign_ins` by address and by name; `joins` by address."""

    pages: RateLimit = field(default_factory=lambda: RateLimit(300, 10))
    changes: RateLimit = field(default_factory=lambda: RateLimit(100, 5))
    sign_ins: RateLimit = field(default_factory=lambda: RateLimit(15, 180))
    joins: RateLimit = field(default_factory=lambda: RateLimit(15, 180))


def network(address: str) -> str:
    """The address, or of IPv6 the network of 2⁶⁴ that one household has."""
    try:
        version = ipaddress.ip_address(address).version
    except ValueError:
        return address
    return str(ipaddress.ip_network(f"{address}/64", strict=False)) if version == 6 else address
