"""What one row says: the same for every form, and what the store is filled from."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from bridle.core.records import Prompt

Ranking = tuple[tuple[int, ...], ...]
TIES = ("both_good", "both_bad")  # that say more than a tie


@dataclass(frozen=True)
class ImportedVerdict:
    """Somebody's word on several answers, by their places in the row: the best group first, ties inside a group."""

    ranking: Ranking
    outcome: Literal["", "both_good", "both_bad"] = ""
    annotator: str = ""
    criterion: str | None = None
    strength: int | None = None
    margin: float | None = None
    weight: float = 1.0
    confidence: float | None = None


@dataclass(frozen=True)
class Opinion:
    """Somebody's word on one answer by itself."""

    kind: Literal["vote", "score", "steps"]
    value: float | None
    answer: int = 0
    annotator: str = ""
    criterion: str | None = None
    steps: tuple[tuple[str, float], ...] = ()
    weight: float = 1.0


@dataclass(frozen=True)
class ImportedRow:
    """One prompt with what a row says of it. `imitate`: its one answer is a demonstration. A text alone has no prompt."""

    form: str
    prompt: Prompt
    answers: tuple[str, ...] = ()
    verdicts: tuple[ImportedVerdict, ...] = ()
    opinions: tuple[Opinion, ...] = ()
    solutions: tuple[str, ...] = ()
    imitate: bool = False
    ranked: bool = False  # the row is a list of answers in an order, be they two
    document: str = ""

    @cached_property
    def texts(self) -> list[str]:
        """All that is said in it, turn by turn."""
        return [turn.content for turn in self.prompt.messages] + [*self.answers, *self.solutions, self.document]

    @property
    def to_judge(self) -> bool:
        """Whether it is several answers of which nobody said a word."""
        return len(self.answers) > 1 and not self.stated

    @property
    def stated(self) -> list[ImportedVerdict | Opinion]:
        return [*self.verdicts, *self.opinions]

    @cached_property
    def kinds(self) -> list[str]:
        """What it counts as: each verdict on the whole (or by a criterion, where that is all there is), else one thing."""
        if found := [v for v in self.verdicts if v.criterion is None] or list(self.verdicts):
            return [self._kind_of(verdict) for verdict in found]
        if self.opinions:
            stated = {opinion.kind for opinion in self.opinions}
            return ["vote" if "vote" in stated else "rating" if "score" in stated else "stepwise"]
        if self.document:
            return ["text"]
        if self.to_judge:
            return ["comparison to judge"]
        return ["demonstration" if self.imitate else "checkable" if self.solutions else "prompt"]

    def _kind_of(self, verdict: ImportedVerdict) -> str:
        if len(verdict.ranking) == 1:
            return verdict.outcome or "tie"
        return "ranking" if self.ranked or len(self.answers) > 2 else "preference"
