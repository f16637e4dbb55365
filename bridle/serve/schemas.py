"""What programs send: requests of OpenAI's API, with what of them is taken, what is refused by name, and what has no effect."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from bridle.core.errors import brief_repr
from bridle.core.records import Message, Role
from bridle.serve.chat.users import LONGEST_NAME
from bridle.serve.problems import RequestProblem

# Parameters of OpenAI's API that are not there, with the values at which they ask for nothing.
NOT_THERE: Mapping[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "functions": (None, []),
    "function_call": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0, 0.0),
    "frequency_penalty": (None, 0, 0.0),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "reasoning_effort": (None, "none"),
    "verbosity": (None, "medium"),
    "store": (None, False),
    "service_tier": (None, "auto", "default"),
    "echo": (None, False),
    "suffix": (None, ""),
}
WITHOUT_EFFECT = (  # who asks, and how tools would be called: nothing of the answer hangs on them
    *("metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls"),
)
ROLES: Mapping[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
OF_TOOLS = ("tool_calls", "function_call", "audio")  # of a message
MOST_STOPS, MOST_TOP = 4, 20
INT64 = 2**63

Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Text = Annotated[str, Field(max_length=2**24)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = None


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    role: str
    content: Text | list[dict[str, Any]] | None = None


class AnswerRequest(BaseModel):
    """What both kinds of request have in common."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: Annotated[str, Field(max_length=1000)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=INT64)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    user: Annotated[str, Field(max_length=LONGEST_NAME)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def unknown(self) -> list[str]:
        """The names of parameters that are ignored; raises RequestProblem for one that is known, and not there."""
        extra = self.model_extra or {}
        for name in NOT_THERE.keys() & extra.keys():
            if not any(type(extra[name]) is type(harmless) and extra[name] == harmless for harmless in NOT_THERE[name]):
                value = brief_repr(extra[name], 60)
                raise RequestProblem(
                    400, f"{name} is not supported here, and {value} asks for it; leave it out", param=name
                )
        return [name for name in extra if name not in NOT_THERE and name not in WITHOUT_EFFECT]


class ChatRequest(AnswerRequest):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None

    @property
    def top(self) -> int | None:
        """How many likely tokens are told beside each; None: no log-probs at all."""
        if self.top_logprobs and not self.logprobs:
            raise RequestProblem(400, "top_logprobs needs logprobs = true", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def longest(self) -> tuple[str, int | None]:
        """The parameter that bounds an answer's tokens, and its value."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    def turns(self) -> tuple[Message, ...]:
        return tuple(chat_turn(message, f"messages[{place}]") for place, message in enumerate(self.messages))


class CompletionRequest(AnswerRequest):
    prompt: Text | list[Text] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None

    @property
    def top(self) -> int | None:
        return self.logprobs

    @property
    def longest(self) -> tuple[str, int | None]:
        return "max_tokens", self.max_tokens

    def prompts(self) -> list[str | list[int]]:
        """One or several, each as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(one, int) for one in self.prompt):
            return [[one for one in self.prompt if isinstance(one, int)]]
        return [one for one in self.prompt if not isinstance(one, int)]


def chat_turn(message: ChatMessage, where: str) -> Message:
    """A message as the chat template takes it."""
    if message.role not in ROLES:
        known = ", ".join(ROLES)
        raise RequestProblem(
            400,
            f"{where}.role = {brief_repr(message.role)} is not supported; the roles are {known}",
            param=f"{where}.role",
        )
    for name in OF_TOOLS:
        if (message.model_extra or {}).get(name):
            raise RequestProblem(400, f"{where}.{name} is not supported here; leave it out", param=f"{where}.{name}")
    if message.content is None:
        raise RequestProblem(
            400, f"{where}.content is missing; give text, or a list of text parts", param=f"{where}.content"
        )
    if isinstance(message.content, str):
        return Message(ROLES[message.role], message.content)
    parts = [part_text(part, f"{where}.content[{place}]") for place, part in enumerate(message.content)]
    return Message(ROLES[message.role], "".join(parts))


def part_text(part: Mapping[str, Any], where: str) -> str:
    kind, text = part.get("type"), part.get("text")
    if kind != "text":
        raise RequestProblem(
            400,
            f"{where} is of type {brief_repr(kind)}, and this model reads text alone; send parts of type 'text'",
            param=where,
        )
    if not isinstance(text, str):
        raise RequestProblem(400, f"{where}.text = {brief_repr(text)} is invalid: must be text", param=f"{where}.text")
    return require_unicode(text, f"{where}.text")


def require_unicode(text: str, where: str) -> str:
    """JSON can spell halves of characters, which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestProblem(
            400, f"{where} holds half a character (a lone surrogate); send whole ones", param=where
        ) from error
    return text
