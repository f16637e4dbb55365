"""What the API takes and gives, as its OpenAPI document shows it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from bridle.feedback.people.accounts import Role

LARGEST = 2**31 - 1  # a number that every database keeps
MOST_ITEMS, MOST_ANSWERS, LONGEST_TEXT = 1_000, 9, 1_000_000
NO_NUL = r"^[^\x00]*$"  # PostgreSQL keeps none
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=NO_NUL)]
Text = Annotated[str, Field(max_length=LONGEST_TEXT, pattern=NO_NUL)]
Number = Annotated[int, Field(ge=0, le=LARGEST)]
Ranking = list[list[Annotated[int, Field(ge=0, lt=MOST_ANSWERS)]]]
Criterion = Annotated[str, Field(min_length=1, max_length=100, pattern=NO_NUL)]


class Body(BaseModel):
    """What is sent; a field that it does not have is refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ErrorSentence(BaseModel):
    """What is wrong with the request, in one sentence."""

    error: str


class Turn(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"role": "user", "content": "Why is the sky blue?"}]})
    role: Literal["system", "user", "assistant"]
    content: Text


class TaskAsked(BaseModel):
    """An item as one person is asked it, its answers in the order in which they see them; who wrote them is not said."""

    item: str
    kind: Literal["pairwise", "ranking", "rating", "demonstration"]
    prompt: list[Turn]
    answers: list[str]
    criteria: list[str] = Field(description="what is asked besides which answer is better on the whole")
    lease_until: str = Field(description="until when it is kept for this person (UTC)")
    guideline: str | None = Field(description="hash of the guideline to go by")
    draft: JsonValue = Field(description="the answer that this person saved last and did not send")
    suggestions: list[float | None] | None = Field(
        default=None,
        description="where the study shows them: how surely each answer beats a typical one, says a reward model",
    )


class Draft(Body):
    draft: dict[Name, JsonValue] = Field(description="the fields of an answer, as far as they are filled in")


class NextTask(BaseModel):
    """`task` is null where nothing is left for this person now."""

    task: TaskAsked | None


class AnswerStored(NextTask):
    """The hashes of the judgements that are stored now, also where the same was sent before, and the next task."""

    judgements: list[str]


class OwnAnswer(BaseModel):
    """`ranking` names answers by their places in `answers`, from 0, the best group first; `outcome` says what kind of tie it is, or
    why there is none."""

    judgement: str
    item: str
    answers: list[str]
    ranking: list[list[int]]
    outcome: str
    criterion: str | None
    strength: int | None
    rationale: str


class NewStudy(Body):
    """What `settings` leaves out stays as it is, or is the default."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"state": "open", "settings": {"overlap": 2, "criteria": ["helpful", "harmless"]}}]
        }
    )
    state: Literal["open", "paused", "closed"] = "open"
    settings: dict[Name, JsonValue] = {}


class StudyDescription(BaseModel):
    """`settings`: for owners alone."""

    name: str
    state: str
    criteria: list[str]
    guideline: str | None
    settings: dict[str, JsonValue] | None = None


class NewItem(Body):
    """Answers to one prompt, to be compared; the order is that of their slots. A prompt may be a text, or a dialogue that a user ends."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "prompt": "Why is the sky blue?",
                    "answers": ["It scatters blue light.", "Nobody knows."],
                    "topic": "physics",
                }
            ]
        }
    )
    prompt: Text | Annotated[list[Turn], Field(min_length=1, max_length=1000)]
    answers: list[Text] = Field(min_length=2, max_length=MOST_ANSWERS)
    need: Annotated[int, Field(ge=1, le=1000)] | None = Field(None, description="people; else the study's overlap")
    topic: Criterion | None = None
    priority: float = Field(0.0, description="the higher, the sooner it is asked")


class NewItems(Body):
    items: list[NewItem] = Field(min_length=1, max_length=MOST_ITEMS)
    split: Literal["train", "heldout"] | None = Field(None, description="of new prompts; null: by their hash")


class ItemIds(BaseModel):
    items: list[str]


class ItemChange(Body):
    """`gold`: the right ranking in slots, the best group first: from then on the item checks how well people judge."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"priority": 2.5, "gold": [[1], [0]]}]})
    priority: float | None = None
    need: Annotated[int, Field(ge=1, le=1000)] | None = None
    topic: Criterion | None = None
    gold: Ranking | None = None


class ListedItem(BaseModel):
    number: int
    item: str
    kind: str
    state: str
    prompt: str
    acquisition: str | None = Field(description="why it is asked: random, informative or gold")
    topic: str | None
    need: int | None
    priority: float
    gold: Ranking | None
    judged: int = Field(description="people who have answered it")


class Exclusion(Body):
    """Keeps what it concerns out of training, lists and later questions; nothing is deleted."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"target": "labeler", "target_id": "anna", "reason": "pressed one key all day"}]
        }
    )
    target: Literal["labeler", "judgement", "item", "prompt", "completion"]
    target_id: Name
    reason: Annotated[str, Field(min_length=1, max_length=2000, pattern=NO_NUL)]


class Guideline(Body):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"texts": {"en": "Prefer what is true…", "zh": "以事实为先……"}}]}
    )
    texts: dict[Literal["en", "zh"], Text] = Field(min_length=1, description="Markdown, by language")


class GuidelineVersion(BaseModel):
    version: int


class GuidelineMarkdown(BaseModel):
    guideline: str = Field(description="its hash, which judgements carry")
    markdown: str


class PersonAccount(BaseModel):
    handle: str
    role: str
    created_at: str
    disabled_at: str | None


class PersonChange(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"role": "adjudicator"}]})
    role: Role | None = None
    closed: bool | None = Field(None, description="a closed account has no sessions and no tokens")


class NewService(Body):
    """An account of a program, which adds items and follows judgements."""

    handle: Annotated[str, Field(min_length=1, max_length=64, pattern=NO_NUL)]


class Token(BaseModel):
    handle: str
    token: str = Field(description="said once, and kept as a hash")


class NewInvitation(Body):
    role: Role
    days: float = Field(7, gt=0, le=366)


class Invitation(BaseModel):
    id: int
    role: str
    created_at: str
    expires_at: str | None


class NewLink(BaseModel):
    path: str = Field(description="to be opened in a browser, once; said once")


class GivenJudgement(BaseModel):
    """`ranking` in slots."""

    labeler: str
    ranking: Ranking
    outcome: str
    strength: int | None
    rationale: str


class Disagreement(BaseModel):
    item: str
    prompt: list[Turn]
    answers: list[str]
    judgements: list[GivenJudgement]


class Decision(Body):
    """`ranking` in slots, the best group first."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"ranking": [[1], [0]], "rationale": "The first one is made up."}]}
    )
    ranking: Ranking = Field(min_length=1)
    rationale: Annotated[str, Field(max_length=20_000, pattern=NO_NUL)] = ""


class JudgementId(BaseModel):
    judgement: str


class FollowedJudgement(BaseModel):
    """`ranking` in slots, whatever the order of display; `supersedes`: the judgement of the same person that it takes the place of."""

    number: int
    judgement: str
    study: str
    item: str
    labeler: str
    labeler_kind: str
    ranking: Ranking
    outcome: str
    criterion: str | None
    strength: int | None
    display_order: list[int] | None
    seconds: float | None
    rationale: str
    guideline: str | None
    marks: list[str]
    supersedes: str | None
    created_at: str


class Arrivals(BaseModel):
    """Ask again with `last` as `after`."""

    judgements: list[FollowedJudgement]
    last: int
