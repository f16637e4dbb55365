"""Chat templates at work. One that comes with a model is a program of its maker's: it runs in a child process, where the system bounds
what it may take, whatever it does. Time and memory that it wastes are then the child's, in one sentence.

A template of ours needs no child (`Template.render`), and for one of another's the child costs some tenth of a millisecond a text. A
line of JSON goes in, a line comes out. On macOS the system bounds the time alone.
What transformers gives a template stands here too: its tags, filters and functions (`chat_template_utils.py` of 5.23).
Left out on purpose: templates may neither read files nor ask for the time; jinja2's sandbox keeps them from all else.
"""

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from typing import Any, NoReturn

import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bridle.core.errors import ModelError, RunawayTemplate
from bridle.core.processes import python_environment, python_module
from bridle.core.records import Message

KILLED = (-signal.SIGKILL, -signal.SIGTERM)  # from outside: the limits here end with other signals


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` round what the assistant says: as it stands, in a scope of its own, as transformers has it."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("written"), [], [], body).set_lineno(line)

    def written(self, caller: Callable[[], str]) -> str:
        return caller()


@cache  # compiling takes milliseconds, rendering microseconds
def compiled_template(source: str) -> jinja2.Template:
    """A chat template as transformers compiles it, but for `strftime_now`: a prompt must not change overnight."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.globals["raise_exception"] = refuse_messages
    environment.filters["tojson"] = as_json
    return environment.from_string(source)


def rendered(source: str, variables: Mapping[str, Any]) -> str:
    """The text of a template. Of its variables `strftime_now` is the day, as ISO text, that it gets in place of today."""
    given = dict(variables)
    if (day := given.get("strftime_now")) is not None:
        given["strftime_now"] = lambda form: datetime.fromisoformat(day).strftime(form)
    return compiled_template(source).render(given)


def folded(messages: Sequence[Message]) -> list[Message]:
    """The messages with each of the system at the head of the user's turn after it."""
    found = list[Message]()
    for message in messages:
        while message.role == "user" and found and found[-1].role == "system":
            message = Message("user", f"{found.pop().content}\n\n{message.content}")
        found.append(message)
    return found


def as_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def refuse_messages(message: str) -> NoReturn:
    raise TemplateError(message)


class Renderer:
    """One child process, started when first needed and again where a template was too much for it. Any thread may ask.

    `seconds` of processor time to compile a template or render one text, a thousand times what any needs; `memory` in bytes, the child's
    own 50 MB among them; `characters` that may be made beyond ten times those that were given.
    """

    def __init__(self, seconds: float = 5.0, memory: int = 2**29, characters: int = 10**7) -> None:
        self.limits = (seconds, memory, characters)
        self.lock = threading.Lock()
        self.child: subprocess.Popen[bytes] | None = None
        self.owner = 0  # process that started it: a fork has none yet
        self.source = ""  # the template that it was last given

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """The text; ModelError where the template refuses the messages or fails, RunawayTemplate where it passes a limit."""
        with self.lock:
            try:
                found = self.ask(source, variables)
            except BaseException:  # Ctrl-C in between: the answer must not be taken for that of the next question
                self.stop()
                raise
        text, fault, limit = found["text"], found["fault"], found["limit"]
        if limit:
            raise RunawayTemplate(
                f"the chat template needs more than {limit} to render {of_messages(variables)}; take a template that does not"
            )
        if fault:
            way_on = way_past(fault, variables)
            raise ModelError(f"the chat template could not render {of_messages(variables)}: {fault}{way_on}")
        return str(text)

    def ask(self, source: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        line, status = self.answer_of_child(source, variables)
        if status in KILLED:  # where memory is short, say: once, that says nothing of the template
            line, status = self.answer_of_child(source, variables)
        if line:
            return dict(json.loads(line))
        if status == -signal.SIGPROF:
            return {"text": "", "fault": "", "limit": f"{self.limits[0]:g} s of processor time"}
        return {"text": "", "fault": "", "limit": f"its process bears (it ended with status {status})"}

    def answer_of_child(self, source: str, variables: Mapping[str, Any]) -> tuple[bytes, int]:
        """Its line, or none and the status that it ended with."""
        child = self.running()
        assert child.stdin is not None and child.stdout is not None
        question = {"source": None if source == self.source else source, "variables": dict(variables)}
        self.source = source
        with suppress(BrokenPipeError):  # it broke off: its end says why
            child.stdin.write(json.dumps(question).encode() + b"\n")
            child.stdin.flush()
        if line := child.stdout.readline():
            return line, 0
        status = child.wait()
        self.stop()
        return b"", status

    def running(self) -> subprocess.Popen[bytes]:
        if self.child is None or self.owner != os.getpid():
            self.child = subprocess.Popen(
                [*python_module("bridle.models.rendering"), *map(str, self.limits)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=python_environment(), start_new_session=True,  # a Ctrl-C is not for it
            )  # fmt: skip
            self.owner, self.source = os.getpid(), ""
            atexit.register(self.stop)
        return self.child

    def stop(self) -> None:
        """End the child, if this process has one."""
        child, self.child = self.child, None
        if child is None or self.owner != os.getpid():
            return
        child.kill()
        child.communicate()


RENDERER = Renderer()


def way_past(fault: str, variables: Mapping[str, Any]) -> str:
    """The setting that may help, in a clause."""
    if fault.endswith(" is undefined"):
        return "; model.template_kwargs gives it variables"
    if any(message["role"] == "system" for message in variables["messages"]):
        return "; if it takes no system message, model.fold_system = true writes that into the user's turn"
    return ""


def of_messages(variables: Mapping[str, Any]) -> str:
    messages = variables["messages"]
    return f"{len(messages)} messages ({characters_of(variables):,} characters)"


def characters_of(variables: Mapping[str, Any]) -> int:
    return sum(len(message["content"]) for message in variables["messages"])


# ---------------------------------------------------------------------------------------------------- in the child


def serve(seconds: float, memory: int, characters: int) -> None:
    """Answer questions until there are no more. The system ends this process where one takes too long, whatever it is at."""
    with suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    source = ""
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        question = json.loads(line)
        source = source if question["source"] is None else question["source"]
        answer = json.dumps(answer_to(source, question["variables"], memory, characters)).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()


def answer_to(source: str, variables: Mapping[str, Any], memory: int, characters: int) -> dict[str, str]:
    """The text, or the fault that the template ended with, or the limit that it passed."""
    most = characters + 10 * characters_of(variables)
    try:
        text = rendered(source, variables)
        text.encode()  # half a character is none that a tokenizer takes
    except MemoryError:
        return {"text": "", "fault": "", "limit": f"{memory // 2**20} MiB of memory"}
    except Exception as error:  # whatever a program may raise
        return {"text": "", "fault": f"{error}"[:1000] or type(error).__name__, "limit": ""}
    if len(text) > most:
        return {"text": "", "fault": "", "limit": f"{most:,} characters"}
    return {"text": text, "fault": "", "limit": ""}


if __name__ == "__main__":
    serve(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
