"""HTTP to others: JSON there and back, within a time, and what goes wrong told in one sentence.

with connected("http://127.0.0.1:8000", token) as ask:
    task = ask("POST", "/api/studies/first/next")["task"]
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bridle.core.errors import DataError, StoreError

SECONDS = 30.0  # for one answer
Ask = Callable[..., Any]


@contextmanager
def connected(address: str, token: str, seconds: float = SECONDS) -> Iterator[Ask]:
    """A function `(method, path, body=None)` that returns the answer's JSON, None where it is empty. Raises DataError where the request was
    refused, StoreError where nobody answered, or with something else than JSON."""
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
