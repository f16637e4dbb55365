"""A judge behind an endpoint: any that answers POST …/chat/completions as OpenAI's does (vLLM, llama.cpp, Ollama, a provider).

Calls run side by side, and each is tried again where that may help (errors of the network, 408, 409, 425, 429, 5xx, garbage), after a
wait that doubles, with jitter, and no sooner than the endpoint asks for (Retry-After); where it limits the rate all of them wait. Every
reply is on the disk before the next call is made. What is never tried again: a refusal of the key or the address, which ends the run, and
of one call (400), which is an abstention. The key is read from the environment, sent to the endpoint alone, and no redirect is followed.
"""

import json
import math
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from bridle.core.errors import DataError, StoreError, UsageError, brief_repr
from bridle.core.forms import form_fault
from bridle.core.outbound import Post, posting
from bridle.core.records import content_hash
from bridle.recipe.services import JudgeSection
from bridle.rewards.judge.cache import ReplyCache
from bridle.rewards.judge.questions import Question
from bridle.rewards.judge.rulings import WRAPPED, Reply

TRIED_AGAIN = {408, 409, 425, 429, *range(500, 600)}
REFUSED = {401, 402, 403, 404, 405, *range(300, 400)}  # of the key or the address: so will all others be
FIRST_WAIT, LONGEST_WAIT, LONGEST_ASKED_WAIT = 0.5, 60.0, 600.0  # seconds
MOST_FAILED = 16  # questions in a row, at least, until the endpoint is held for dead
BYTES_A_TOKEN = 3.5
WORD_TOKENS = 8  # room for a verdict of one word, however it is tokenised
CONTENT = {"choices": [{"message": {"content?": (str, None), "refusal?": (str, None)}, "finish_reason?": (str, None)}]}


@dataclass(frozen=True)
class CallEstimate:
    """What a run will take: an upper bound of calls and of tokens written, and about as many read."""

    calls: int
    tokens_read: int
    tokens_written: int
    cost: float
    seconds: float


@dataclass
class Endpoint:
    """Asks the endpoint of a recipe's [judge]. `calls` and `tokens` are those of this process: what a cache knew costs neither."""

    section: JudgeSection
    cache: ReplyCache
    first_wait: float = FIRST_WAIT
    calls: int = 0
    tokens: int = 0
    failed_in_a_row: int = 0
    not_before: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.url = f"{self.section.endpoint.rstrip('/')}/chat/completions"
        self.key = secret_in(self.section.key_from)

    def ask(self, questions: Sequence[Question], progress: Callable[[int], None] | None = None) -> list[Reply]:
        """A reply to each question. Raises DataError where the endpoint refuses all, StoreError where it is dead: what came before is
        kept."""
        keys = [self.key_of(question) for question in questions]
        times = Counter(keys)  # what is asked twice is paid for once
        waiting = {key: question for key, question in zip(keys, questions, strict=True) if key not in self.cache.known}
        found: dict[str, Reply] = {key: self.cache.known[key] for key in keys if key not in waiting}
        if progress is not None and found:
            progress(sum(times[key] for key in found))
        self.stopped.clear()
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        with posting(self.url, headers, self.section.timeout, self.section.concurrency) as post:
            with ThreadPoolExecutor(self.section.concurrency, "judge") as pool:
                running = {pool.submit(self.reply_to, post, key, question): key for key, question in waiting.items()}
                try:
                    for future in as_completed(running):
                        found[running[future]] = future.result()
                        if progress is not None:
                            progress(times[running[future]])
                except BaseException:
                    self.stopped.set()  # calls that are under way come to their end, and are kept
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
        return [found[key] for key in keys]

    # ---------------------------------------------------------------------------------------------------- one call

    def body_of(self, question: Question) -> dict[str, Any]:
        section = self.section
        soft = section.logprobs and question.words and not question.reasons
        room = WORD_TOKENS if question.words and not question.reasons else section.max_tokens
        return {
            "model": section.model,
            "messages": [{"role": message.role, "content": message.content} for message in question.messages],
            "temperature": section.temperature,
            **({} if "max_completion_tokens" in section.body else {"max_tokens": room}),
            **({"logprobs": True, "top_logprobs": 20} if soft else {}),
            **section.body,
        }

    def key_of(self, question: Question) -> str:
        return content_hash([self.url, self.body_of(question), question.words])

    def reply_to(self, post: Post, key: str, question: Question) -> Reply:
        """One question, tried as often as the recipe allows."""
        body, fault = self.body_of(question), ""
        room = self.room_for(question)
        for attempt in range(self.section.retries + 1):
            if not (self.pause() and self.reserve(room)):
                return Reply(fault="over_budget")
            status, asked_wait, fault, reply = self.one_try(post, body, key, question)
            self.settle(room, sum(reply.tokens) if reply else 0)
            if reply is not None:
                self.cache.keep(key, reply)
                self.note(failed=False)
                return reply
            if status in REFUSED:
                self.stopped.set()  # by the caller that sees it: another may start before the refusal is read out
                raise DataError(self.refusal(status, fault))
            if status and status not in TRIED_AGAIN and not 200 <= status < 300:
                break
            self.wait_until(asked_wait, attempt, everybody=status == 429)
        if self.note(failed=True):
            self.stopped.set()
            raise StoreError(
                f"{self.url} failed on {self.failed_in_a_row} questions in a row, the last time with {fault}; what it answered is kept in "
                f"{self.cache.path}: run the same command again when it works"
            )
        return Reply(fault="endpoint_error", text=fault)

    def one_try(
        self, post: Post, body: Mapping[str, Any], key: str, question: Question
    ) -> tuple[int, float, str, Reply | None]:
        """Its status (0: none came), the seconds that the endpoint asks to wait, what went wrong, and the reply where there is one."""
        status, headers, content, fault = post(body, {"idempotency-key": key})
        wait = asked_seconds(headers.get("retry-after", ""))
        if fault:
            return status, wait, fault, None
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            found = None
        if not 200 <= status < 300:
            return (
                status,
                wait,
                f"status {status}: {self.scrubbed(reason_in(found) or content[:200].decode('utf-8', 'replace'))}",
                None,
            )
        reply = read_reply(found, question)
        return (
            status,
            wait,
            "" if reply else f"status {status} and no answer in it: {brief_repr(content[:200])}",
            reply,
        )

    def refusal(self, status: int, fault: str) -> str:
        if 300 <= status < 400:
            return (
                f"{self.url} redirects elsewhere, where the key is not sent; set judge.endpoint to the address itself"
            )
        named = self.section.key_from
        hint = (
            f"see that ${named} holds a key that it takes"
            if named
            else "name the variable that holds the key in judge.key_from"
        )
        if status in (404, 405):
            hint = f"see judge.endpoint and judge.model = {self.section.model!r}"
        return f"{self.url} refused with {fault}; {hint}"

    def scrubbed(self, text: str) -> str:
        return text.replace(self.key, "•••") if self.key else text

    # ---------------------------------------------------------------------------------------------- waits and budget

    def pause(self) -> bool:
        """Wait while the endpoint limits the rate. False where the run is being stopped."""
        while not self.stopped.is_set() and (left := self.not_before - time.monotonic()) > 0:
            self.stopped.wait(left * random.uniform(1.0, 1.2))  # not all at the same instant
        return not self.stopped.is_set()

    def wait_until(self, asked: float, attempt: int, everybody: bool) -> None:
        if attempt == self.section.retries:
            return
        seconds = max(asked, min(LONGEST_WAIT, self.first_wait * 2**attempt) * random.uniform(0.5, 1.0))
        if everybody:
            with self.lock:
                self.not_before = max(self.not_before, time.monotonic() + seconds)
        else:
            self.stopped.wait(seconds)

    def room_for(self, question: Question) -> int:
        """Tokens that a call may take, from above: what is read by its length, what is written by its limit."""
        return self.read_tokens(question) + self.written_tokens(question)

    def read_tokens(self, question: Question) -> int:
        return math.ceil(sum(len(message.content.encode()) for message in question.messages) / BYTES_A_TOKEN) + 8

    def written_tokens(self, question: Question) -> int:
        body = self.body_of(question)
        return int(body["max_tokens" if "max_tokens" in body else "max_completion_tokens"])

    def reserve(self, tokens: int) -> bool:
        """Take a call and its tokens out of the budget; False where it has none left."""
        with self.lock:
            calls_left = not self.section.max_calls or self.calls < self.section.max_calls
            tokens_left = not self.section.max_total_tokens or self.tokens + tokens <= self.section.max_total_tokens
            if not (calls_left and tokens_left):
                return False
            self.calls, self.tokens = self.calls + 1, self.tokens + tokens
            return True

    def settle(self, reserved: int, used: int) -> None:
        with self.lock:
            self.tokens += used - reserved

    def note(self, failed: bool) -> bool:
        """Whether so many failed one after the other that the endpoint is dead."""
        with self.lock:
            self.failed_in_a_row = self.failed_in_a_row + 1 if failed else 0
            return self.failed_in_a_row >= max(MOST_FAILED, self.section.concurrency)

    def estimate(self, questions: Sequence[Question]) -> CallEstimate:
        """Of those that the cache does not know."""
        new = {key: q for q in questions if (key := self.key_of(q)) not in self.cache.known}
        read = sum(map(self.read_tokens, new.values()))
        written = sum(map(self.written_tokens, new.values()))
        cost = (read * self.section.price_read + written * self.section.price_written) / 1e6
        seconds = math.ceil(len(new) / self.section.concurrency) * self.section.expected_seconds
        return CallEstimate(len(new), read, written, cost, seconds)


def secret_in(variable: str) -> str:
    """The key in this environment variable; UsageError where it holds none, which never says what it holds."""
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        held = "holds something else than a key (which must be one line of plain characters)" if key else "is not set"
        raise UsageError(
            f"judge.key_from names the environment variable {variable}, which {held}; export it before you run this again"
        )
    return key


def asked_seconds(value: str) -> float:
    """Of a Retry-After header: seconds, or a date; 0 where it says nothing."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    return min(max(0.0, seconds), LONGEST_ASKED_WAIT) if math.isfinite(seconds) else 0.0


def reason_in(found: Any) -> str:
    """What an error's JSON says."""
    error = found.get("error", found.get("detail")) if isinstance(found, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return message[:300] if isinstance(message, str) else ""


def read_reply(found: Any, question: Question) -> Reply | None:
    """The reply in a chat completion; None where it is none."""
    if not isinstance(found, dict) or form_fault(found, CONTENT) or not found["choices"]:
        return None
    choice = found["choices"][0]
    message, reason = choice["message"], choice.get("finish_reason") or ""
    refused = message.get("refusal")
    stated = found.get("usage")
    usage = stated if isinstance(stated, dict) else {}
    tokens = tuple(
        n if type(n := usage.get(name)) is int and n >= 0 else 0 for name in ("prompt_tokens", "completion_tokens")
    )
    text = message.get("content") or ""
    reason = "content_filter" if refused and not text else reason
    return Reply(
        text or refused or "",
        "",
        word_probabilities_in(choice.get("logprobs"), question),
        reason,
        (tokens[0], tokens[1]),
    )


def word_probabilities_in(logprobs: Any, question: Question) -> dict[str, float]:
    """The probabilities of the question's words at the place where the reply gives its one; none where that is not known."""
    places = logprobs.get("content") if isinstance(logprobs, dict) else None
    for place in places if isinstance(places, list) and not question.reasons else ():
        token = place.get("token") if isinstance(place, dict) else None
        if not isinstance(token, str) or not token.strip(WRAPPED):
            continue  # white space and quotes before the word
        rows = place.get("top_logprobs") if token.strip(WRAPPED) in question.words else None
        found = dict.fromkeys(question.words, 0.0)
        for row in rows if isinstance(rows, list) else ():
            word, logprob = (row.get("token"), row.get("logprob")) if isinstance(row, dict) else (None, None)
            if (
                isinstance(word, str)
                and isinstance(logprob, int | float)
                and word.strip(WRAPPED) in found
                and logprob <= 1e-6
            ):
                found[word.strip(WRAPPED)] += math.exp(logprob)
        return found if sum(found.values()) > 0 else {}
    return {}
