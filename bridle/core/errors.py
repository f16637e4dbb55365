"""Every error that bridle raises on purpose. Each message is one sentence: what was wrong, what is needed.

BridleError                 exit 1: the work failed
├── UsageError              exit 2: the command was wrong
│   ├── RecipeError         a setting is unknown, misspelt or out of range
│   └── ProjectError        no project here, or one that does not fit
├── DataError               a file or a row cannot be used
│   └── NoUsableRows        nothing at all could be used
├── StoreError              the store refused (append-only, broken hash, wrong version)
├── ModelError              a model folder cannot be used
│   ├── RunawayTemplate     a chat template that needs more time or memory than any should
│   ├── UnspeltToken        a text that spells a special token, which the tokenizer cannot write as text
│   ├── OutsideEmbeddings   a text with a token that the model has no embedding for
│   ├── UnsupportedModel    an architecture that bridle cannot train or decode
│   ├── StaleWeights        answers or packed weights come from other weights than expected
│   └── NotFinite           logits that are not numbers: rows that cannot be answered
├── CheckpointError         a checkpoint is truncated, corrupted or of another run
├── TrainingStopped         a run that cannot go on (for example only non-finite rewards)
├── FirstRankFailed         on the ranks that share a step with one that failed, and has said why
├── WorkerLost              a process that worked for this one is gone: others do its share
├── WaitingForLabels        exit 3: a run that goes on when people have judged what it asks
└── Interrupted             exit 130: stopped by the user, everything saved
"""

from bridle.core.text import one_line


class BridleError(Exception):
    """Root of the tree; the command line prints its message and exits with `exit_status`. As text it is one line in which nothing is
    obeyed, whatever it quotes; `args` keep it as it was written."""

    exit_status = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class FirstRankFailed(BridleError):
    pass


class WorkerLost(BridleError):
    """A process that worked for this one is gone."""


class UsageError(BridleError):
    exit_status = 2


class RecipeError(UsageError):
    pass


class ProjectError(UsageError):
    pass


class DataError(BridleError):
    pass


class NoUsableRows(DataError):
    pass


class StoreError(BridleError):
    pass


class ModelError(BridleError):
    pass


class UnsupportedModel(ModelError):
    pass


class StaleWeights(ModelError):
    pass


class NotFinite(ModelError):
    """`ids`: of the rows concerned."""

    def __init__(self, message: str, ids: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.ids = ids


class RunawayTemplate(ModelError):
    pass


class UnspeltToken(ModelError):
    pass


class OutsideEmbeddings(ModelError):
    pass


class CheckpointError(BridleError):
    pass


class TrainingStopped(BridleError):
    pass


class WaitingForLabels(BridleError):
    exit_status = 3


class Interrupted(BridleError):
    exit_status = 130


def brief_repr(value: object, width: int = 100) -> str:
    """A value in a message: its repr, cut where it is long, for it may be of any size, and nest deeper than `repr` can follow."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a value of type {type(value).__name__} that is too large to be shown"
    return text if len(text) <= width else f"{text[:width]}… ({len(text):,} characters)"


def described_value(value: object) -> str:
    """What was got, with its type: a text as it is, of anything else its repr."""
    text = value if isinstance(value, str) else brief_repr(value)
    return f"{type(value).__name__} {text[:60]!r}"
