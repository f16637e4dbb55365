"""Settings of what people and programs do beside training: labelling, judging, and being served."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bridle.recipe.base import LONGEST, WIDEST, PathText, Section

RESERVED = ("model", "messages", "stream", "n", "logprobs", "top_logprobs", "max_tokens")  # of a request's body


class LabelSection(Section):
    """How answers are compared by people, real or simulated, and what that costs."""

    overlap: int = Field(default=3, ge=1, le=100)
    """people who judge the same item, of those that several judge: their agreement tells how reliable each is"""
    overlap_share: float = Field(default=0.2, ge=0, le=1)
    """share of the items that several people judge; the others are judged once"""
    gold_share: float = Field(default=0.05, ge=0, le=1)
    """playground: share of the items whose right answer is known, by which people are checked"""
    piece_price: float = Field(default=0, ge=0, le=LONGEST)
    """what one judgement costs, in any currency"""
    hour_price: float = Field(default=0, ge=0, le=LONGEST)
    """what an hour of a person's time costs, where they are not paid by the piece"""


class JudgeSection(Section):
    """A model that compares answers in people's place: one of the project, a folder, or one behind an endpoint."""

    model: PathText = ""
    """who judges: a model of the project or a folder; with an endpoint the name that it goes by there"""
    endpoint: Annotated[str, Field(max_length=1000)] = ""
    """address of an OpenAI-compatible API, such as http://127.0.0.1:8000/v1; empty: the model runs here"""
    key_from: str = ""
    """name of the environment variable that holds the endpoint's key; empty: it wants none"""
    form: Literal["comparison", "rating"] = "comparison"
    """comparison: two answers side by side, more in one call; rating: each answer by itself, by the expected grade"""
    rubric: str = ""
    """what to judge by; empty: what is right, does what was asked and does no harm. A prompt's own `rubric` stands above it"""
    principles: list[str] = Field(default_factory=list, max_length=1000)
    """in its place: of these one is drawn for each comparison"""
    language: Literal["en", "zh"] = "en"
    """language in which the judge is asked"""
    reasons: bool = False
    """whether the judge gives its reasons before its verdict, which then is a word and no probability"""
    scale: int = Field(default=5, ge=2, le=9)
    """highest grade of a rating"""
    question: str = ""
    """rating: the whole question, with {request} and {answer} in it, for a model that knows one; without these it is asked as the turn
    that follows the answer; empty: ours, and of the playground's critic the one that it was taught"""
    verdicts: dict[str, float] = Field(default_factory=dict, max_length=20)
    """rating: what can be said to it, each with its grade, such as {"It is harmful." = 0, "It is good." = 1}; empty: 1 to `scale`"""
    both_orders: bool = True
    """whether two answers are judged in both orders, which takes two calls"""
    logprobs: bool = True
    """whether the endpoint is asked for the probabilities of its verdict"""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """of the judge's reply; at 0 it says the same again"""
    max_tokens: int = Field(default=512, ge=8, le=WIDEST)
    """longest reply with reasons, or of a ranking"""
    concurrency: int = Field(default=16, ge=1, le=1000)
    """calls under way at once"""
    timeout: float = Field(default=60.0, gt=0, le=3600)
    """seconds until a call is given up"""
    retries: int = Field(default=5, ge=0, le=20)
    """times that a call is tried again"""
    max_calls: int = Field(default=0, ge=0, le=LONGEST)
    """calls of one command at most; 0: as many as it takes"""
    max_total_tokens: int = Field(default=0, ge=0, le=10**12)
    """tokens of one command at most, read and written; 0: as many as it takes"""
    price_read: float = Field(default=0.0, ge=0, le=LONGEST)
    """price of a million tokens that the judge reads, in any currency"""
    price_written: float = Field(default=0.0, ge=0, le=LONGEST)
    """price of a million tokens that it writes"""
    expected_seconds: float = Field(default=2.0, gt=0, le=3600)
    """seconds that a call takes, for the estimate before the first one"""
    body: dict[str, Any] = Field(default_factory=dict)
    """more fields of the request's body, such as {seed = 1}; max_completion_tokens stands in place of max_tokens"""
    injections: int = Field(default=16, ge=0, le=WIDEST)
    """comparisons that are judged again with an instruction to the judge in the losing answer; how often that flips the verdict is
    reported"""
    family: list[str] = Field(default_factory=list, max_length=100)
    """models of the project whose answers are of the judge's own family; a judge that is one of them is its own"""

    @model_validator(mode="after")
    def the_key_stays_out(self) -> JudgeSection:
        """No message says what was given: it may be a key."""
        if self.key_from and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,99}", self.key_from):
            raise ValueError(
                "key_from must be the name of an environment variable, letters, digits and _, and never the key itself"
            )
        if self.endpoint and not re.fullmatch(r"https?://[^\s@?#]+", self.endpoint):
            raise ValueError(
                "endpoint must be an http or https address without a user, a password, a query or a fragment"
            )
        if taken := [
            name for name in self.body if name in RESERVED or re.search("key|secret|password|authori[sz]", name, re.I)
        ]:
            raise ValueError(
                f"body cannot have {taken[0][:40]!r}: the judge writes it itself, or it is a secret, which no recipe holds"
            )
        room = self.body.get("max_completion_tokens", 1)
        if type(room) is not int or room < 1:
            raise ValueError("body.max_completion_tokens must be a whole number of at least 1")
        if (self.question or self.verdicts) and self.form != "rating":
            raise ValueError("question and verdicts are of form = 'rating'; set that, or leave them out")
        places = [self.question.count(place) for place in ("{request}", "{answer}")]
        if places not in ([0, 0], [1, 1]):
            raise ValueError("question must hold {request} and {answer}, each once, or neither")
        if self.question and self.reasons:
            raise ValueError("a question of its own asks for no reasons; set reasons = false, or leave it out")
        if self.verdicts and len(set(self.verdicts.values())) < 2:
            raise ValueError("verdicts need two grades at least, or no answer is better than another")
        if self.endpoint and not self.model:
            raise ValueError("an endpoint needs the model's name; set model")
        if self.key_from and not self.endpoint:
            raise ValueError(
                "key_from is the key to an endpoint, and none is named; set endpoint, or leave key_from out"
            )
        return self


class LoopSection(Section):
    """The flywheel (`bridle loop`): what is learnt from users, and what may take the place of what is served."""

    method: Literal["ppo", "grpo", "rloo", "rebel", "best-of-n", "dpo", "kto", "orpo"] = "ppo"
    """how a candidate is trained, from what is served: by its own answers (ppo, grpo, rloo, rebel, best-of-n, and dpo with online_rounds),
    or by what was said of answers, without a reward model (dpo, kto, orpo)"""
    judgements: int = Field(default=400, ge=1, le=LONGEST)
    """new judgements after which the reward model is trained again; it is sooner where it is seen to be stale"""
    prompts: int = Field(default=500, ge=1, le=LONGEST)
    """prompts of users who agreed to it that join those to train on, in a turn at most, drawn by their authors; where data.sources has
    serving"""
    decided_by: Literal["auto", "people", "judge", "verifier"] = "auto"
    """who compares a candidate with what is served: people who are asked (auto: on the playground simulated ones), the recipe's judge, or
    the checks of held-out prompts that have one; users' votes alone never decide"""
    comparisons: int = Field(default=400, ge=1, le=WIDEST)
    """of a candidate with what is served, at most; one that is not shown to be better by then is not promoted"""
    level: float = Field(default=0.05, gt=0, lt=1)
    """probability that a candidate that is not better is ever promoted; the same for going back from one that is not worse"""
    share: float = Field(default=0.1, gt=0, le=1)
    """of the users who meet a candidate that passed the gate first; 1: all, at once"""
    votes: int = Field(default=100, ge=1, le=LONGEST)
    """users' comparisons of a candidate with what is served without an alarm, after which it is served to all"""
    audit: int = Field(default=200, ge=1, le=WIDEST)
    """comparisons by those who decide, at most, where users' votes raise an alarm"""
    max_kl: float = Field(default=30.0, gt=0)
    """nats an answer from the model that a candidate was held to"""
    max_length_ratio: float = Field(default=2.5, gt=0)
    """mean length of a candidate's answers, in those of what is served"""
    min_distinct_share: float = Field(default=0.5, ge=0, le=1)
    """distinct pairs of tokens in a candidate's answers, in those of what is served"""
    max_rise: float = Field(default=0.2, ge=0, le=1)
    """how much the share of answers that are cut off, of those that refuse, and the mean share of an answer that is repeated may rise"""
    suite: PathText = ""
    """regression suite: a file of JSON lines in the project's folder, each a prompt with a check that a candidate must not fail where
    what is served passes; empty: none"""
    suite_problems: int = Field(default=0, ge=0, le=WIDEST)
    """held-out prompts whose answers can be checked that join the suite, at most"""
    suite_answers: int = Field(default=8, ge=2, le=1000)
    """answers of each of both models to each prompt of the suite"""
    suite_margin: float = Field(default=0.1, gt=0, lt=1)
    """by how much the share of answers that pass the suite may be lower; what is not shown to be within it, at 95%, is refused"""


Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,253}$|^[0-9a-f:]{2,45}$")]
Origin = Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?$")]


class ServeSection(Section):
    """How `bridle serve` answers programs and users: what one request, one key and all together may ask; which answers are compared."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = "bridle"
    """name by which programs ask for whatever model is promoted; one that `bridle serve MODEL` names goes by its own"""
    look_seconds: float = Field(default=5.0, gt=0, le=3600)
    """seconds between two looks at what is promoted"""
    compare_share: float = Field(default=0.1, ge=0, le=1)
    """share of the turns of users who agreed in which two answers are compared"""
    compare_other_share: float = Field(default=0.2, ge=0, le=1)
    """of these comparisons, the share between the user's model and another: what was served before, or what a candidate would replace; the
    rest are of two answers of one model"""
    compare_random_share: float = Field(default=0.1, ge=0, le=1)
    """of these comparisons, the share whose models are drawn uniformly, for win rates without bias"""
    votes_per_day: int = Field(default=200, ge=0, le=LONGEST)
    """what one user says in a day (UTC) that counts; more is kept, and weighs nothing"""
    user_rate: int = Field(default=60, ge=1, le=WIDEST)
    """requests a minute of one user of the chat; of one address four times as many"""
    public_chat: bool = False
    """whether the chat is open to whoever reaches the server, without a key, where others than this machine can"""

    reward: str = ""
    """name of the project's reward model that picks among best_of answers; empty: the project's reward model, where it has one"""
    threads: int = Field(default=0, ge=0, le=1024)
    """threads of the model on a CPU; 0: all cores but one, which reads requests and writes answers"""
    batch: int = Field(default=32, ge=1, le=4096)
    """answers that are written at once"""
    max_waiting: int = Field(default=256, ge=0, le=WIDEST)
    """answers that may wait for their turn beside those; what asks for more is refused, with status 429"""
    max_requests: int = Field(default=256, ge=1, le=WIDEST)
    """requests under way at once"""
    max_requests_per_key: int = Field(default=64, ge=1, le=WIDEST)
    """the same of one key"""
    max_answers: int = Field(default=16, ge=1, le=128)
    """answers to one prompt: n and best_of at most"""
    max_prompts: int = Field(default=16, ge=1, le=1024)
    """prompts in one request of the older kind, which takes a list"""
    max_prompt_tokens: int = Field(default=0, ge=0, le=LONGEST)
    """tokens of a prompt; 0: as many as the model's context leaves"""
    max_tokens: int = Field(default=4096, ge=1, le=WIDEST)
    """tokens of an answer, asked for or not; the model's context may be shorter"""
    body_bytes: int = Field(default=2**20, ge=1024, le=2**30)
    """bytes of a request's body"""
    body_seconds: float = Field(default=60.0, gt=0, le=3600)
    """seconds in which a request's body comes"""
    head_seconds: float = Field(default=20.0, gt=0, le=3600)
    """seconds in which a connection sends the head of its first request"""
    send_seconds: float = Field(default=60.0, gt=0, le=3600)
    """seconds for which an answer waits on somebody who does not read it"""
    connections: int = Field(default=1000, ge=8, le=WIDEST)
    """connections at once; beyond these the one that has waited longest without a request is closed"""
    drain_seconds: float = Field(default=30.0, ge=0, le=3600)
    """seconds that answers have to end when the server is stopped"""
    hosts: list[Host] = Field(default_factory=list, max_length=100)
    """names by which it may be called beside this machine's own; empty: on the loopback none, elsewhere any, for there a key is needed"""
    origins: list[Origin] = Field(default_factory=list, max_length=100)
    """other sites, such as https://chat.example.org, whose pages may ask from a browser (CORS)"""


class ScaleSection(Section):
    """Several processes ("ranks") that share each step of a training."""

    workers: int = Field(default=1, ge=1, le=4096)
    """ranks, which `bridle train` starts on this machine; 1: those that torchrun started, and without it one"""
    shard: bool = False
    """divide the weights that learn, their gradients and moments over the ranks (FSDP2); false: each rank has all of them"""
    launcher: Literal["torchrun", "ray"] = "torchrun"
    """what starts the ranks: torchrun on this machine, or Ray on a cluster (bridle[ray])"""
    address: str = Field(default="", max_length=1000)
    """Ray's cluster: "auto", or host:port; empty: one of this machine alone, which ends with the run"""
    restarts: int = Field(default=3, ge=0, le=1000)
    """times that Ray starts all ranks again after the last checkpoint, where one was lost, until a further one is reached"""
    patience: float = Field(default=1800.0, gt=0, le=LONGEST)
    """seconds that a rank waits for the others before the run ends"""
    reward_workers: int = Field(default=0, ge=0, le=4096)
    """processes by which `bridle train` scores answers with the learned reward; 0: it scores them itself"""
    store: str = Field(default="", max_length=1000)
    """PostgreSQL in place of store.sqlite, as postgresql+psycopg://user@host/name, the password in PGPASSWORD or ~/.pgpass"""

    @model_validator(mode="after")
    def an_address_is_of_ray(self) -> ScaleSection:
        if self.address and self.launcher != "ray":
            raise ValueError("address is of a Ray cluster; set launcher = 'ray', or leave it out")
        return self

    @model_validator(mode="after")
    def the_password_stays_out(self) -> ScaleSection:
        """No message says what was given: it may hold one."""
        if self.store and (
            not re.fullmatch(r"postgresql\+psycopg://([^:@/?]+@)?[^@]*", self.store) or "password" in self.store
        ):
            raise ValueError(
                "store must be postgresql+psycopg://user@host/name, without a password, which runs would keep with the recipe: export "
                "PGPASSWORD, or write ~/.pgpass; empty means store.sqlite in the project"
            )
        return self
