"""HTTP to others: JSON there and back, within a time, and what goes wrong told in one sentence.

with connected("http://127.0.0.1:8000", token) as ask:
    task = ask("POST", "/api/studies/first/next")["task"]
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bridle.core.errors import DataError, StoreError

SECONDS = 30.0  # for one answer
LARGEST_ANSWER = 4 * 2**20  # bytes
Ask = Callable[..., Any]
Posted = tuple[int, Mapping[str, str], bytes, str]  # status (0: none came), headers, content, what went wrong
Post = Callable[[object, Mapping[str, str]], Posted]


@contextmanager
def connected(address: str, token: str, seconds: float = SECONDS) -> Iterator[Ask]:
    """A function `(method, path, body=None)` that returns the answer's JSON, None where it is empty. Raises DataError where the request
    was refused, StoreError where nobody answered, or with something else than JSON."""
    import httpx2  # only who asks others needs it

    with httpx2.Client(
        base_url=address, timeout=seconds, headers={"authorization": f"Bearer {token}"}, trust_env=False
    ) as client:

        def ask(method: str, path: str, body: object = None) -> Any:
            asked = f"{method} {address}{path}"
            try:
                answer = client.request(method, path, json=body) if body is not None else client.request(method, path)
            except httpx2.HTTPError as error:
                raise StoreError(
                    f"{asked} got no answer ({type(error).__name__}: {error}); see that the server runs"
                ) from error
            try:
                found = answer.json() if answer.content else None
            except ValueError as error:
                raise StoreError(f"{asked} was answered with status {answer.status_code} and no JSON") from error
            if answer.is_success:
                return found
            why = found.get("error") if isinstance(found, dict) else None
            refused = DataError if answer.status_code < 500 else StoreError
            raise refused(f"{asked} was refused with status {answer.status_code}: {why or 'no reason was given'}")

        yield ask


@contextmanager
def posting(url: str, headers: Mapping[str, str], seconds: float, connections: int) -> Iterator[Post]:
    """A function `(body, more_headers)`, to be called from several threads, that posts JSON to one address and raises nothing. No
    redirect is followed. All of an answer must come within the seconds. A proxy that the environment names is used, but for this
    machine."""
    import httpx2

    own = httpx2.URL(url).host in ("localhost", "127.0.0.1", "::1")
    limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
    with httpx2.Client(headers=dict(headers), timeout=seconds, limits=limits, trust_env=not own) as client:

        def post(body: object, more: Mapping[str, str]) -> Posted:
            end, content = time.monotonic() + seconds, b""
            try:
                with client.stream("POST", url, json=body, headers=dict(more)) as answer:
                    for part in answer.iter_bytes():
                        content += part
                        if len(content) > LARGEST_ANSWER or time.monotonic() > end:
                            return answer.status_code, answer.headers, b"", "an answer that does not end"
                    return answer.status_code, answer.headers, content, ""
            except httpx2.HTTPError as error:
                return 0, {}, b"", f"{type(error).__name__}: {error}"

        yield post
