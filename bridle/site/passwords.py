"""Passwords, hashed with argon2id (RFC 9106) by the parameters that argon2-cffi recommends: some 50 ms and 64 MiB each."""

import threading
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from bridle.core.errors import DataError

SHORTEST, LONGEST = 8, 1000  # characters
at_once = threading.BoundedSemaphore(2)  # that many at a time: a crowd that tries passwords takes no memory from others


@cache
def hasher() -> PasswordHasher:
    return PasswordHasher()


def hash_password(password: str) -> str:
    """Raises DataError for one that is too short, or too long to be looked at."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise DataError(f"a password has {SHORTEST} to {LONGEST:,} characters, and this one has {len(password):,}")
    with at_once:
        return hasher().hash(password)


@cache
def nobodys() -> str:
    return hasher().hash("the password of nobody")


def verify(password_hash: str | None, password: str) -> bool:
    """Of somebody who is not there, or has none, it takes as long: how long it takes tells nobody who has an account."""
    known = password_hash or nobodys()
    try:
        with at_once:
            hasher().verify(known, password[:LONGEST])
    except (VerificationError, InvalidHashError):
        return False
    return password_hash is not None


def outdated(password_hash: str) -> bool:
    """Whether it should be hashed anew at the next sign-in, for the recommended parameters have grown."""
    return hasher().check_needs_rehash(password_hash)
