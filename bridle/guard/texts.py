"""Signals of over-optimisation that are in the answers: repetition, sameness, refusals.

Each function takes answers as token ids or as text: ids are counted as tokens, a text as characters, which need no blanks between words,
so Chinese is measured as English is. Nothing here takes more than n log² n steps, whatever the answer: a policy that has gone wrong
writes as much as it may. Where there is nothing to measure the signal is None, never 0.
The n-grams of an answer with fewer than n items are one: the whole of it.
"""

import tomllib
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bridle.core.errors import DataError
from bridle.core.records import Completion, Prompt
from bridle.maths.statistics import Proportion, proportion

Items = str | Sequence[int]  # an answer as text or as token ids
Ints = NDArray[np.int64]
Refuses = Callable[[Prompt, Completion], bool]

FIRST_WORDS = 300  # characters in which a refusal shows; an answer that comes to it later has said something before


def distinct_ngrams(answers: Sequence[Items], n: int) -> float | None:
    """Distinct-n: distinct n-grams / n-grams, over all answers together; 1 where none comes twice (Li 2016, arxiv.org/abs/1510.03055,
    §5). It falls with the number of answers and their length, so compare it with that of as many of SFT's."""
    classes, _ = _ngrams(answers, n)
    return len(np.unique(classes)) / len(classes) if len(classes) else None


def self_similarity(answers: Sequence[Items], n: int) -> float | None:
    """How alike the K answers to one prompt are: F1 of their sets of n-grams, over all pairs of answers together,
    Σ |A ∩ B| / Σ ½ (|A| + |B|). 1: all have the same n-grams; 0: no two share one; None for one answer alone. What Self-BLEU is for
    (Zhu 2018, arxiv.org/abs/1802.01886), in time that grows with the text and not with the pairs."""
    if len(answers) < 2:
        return None
    classes, owners = _ngrams(answers, n)
    held = np.unique(classes * len(answers) + owners) // len(answers)  # each n-gram once for each answer that has it
    _, answers_with = np.unique(held, return_counts=True)
    return float(answers_with @ (answers_with - 1)) / (float(answers_with.sum()) * (len(answers) - 1))


def longest_repeat(answer: Items) -> int:
    """The most items in a row that come twice in an answer; the two may overlap: 3 in "abcabc", 4 in "aaaaa", 0 where nothing does.

    Windows are numbered by what they hold, first those of 1, 2, 4, … items, each as two halves, while any come twice; the longest is then
    put together from the largest down. Only places whose window comes again are looked at further.
    """
    items = _numbers(answer)
    doubled = [_numbered(items)]  # [k]: the number of the window of 2^k items at each place
    while len(doubled[-1]) > (half := 1 << (len(doubled) - 1)) and _repeated(doubled[-1]).any():
        doubled.append(_pairs(doubled[-1][:-half], doubled[-1][half:]))
    length, places, names = 0, np.arange(len(items)), np.zeros(len(items), dtype=np.int64)
    for power in reversed(range(len(doubled))):
        further = places + length
        inside = further < len(doubled[power])
        longer = _pairs(names[inside], doubled[power][further[inside]])
        if (again := _repeated(longer)).any():
            length, places, names = length + (1 << power), places[inside][again], longer[again]
    return length


def repeated_share(answers: Sequence[Items]) -> float | None:
    """Mean over answers that are not empty of `longest_repeat` / items: near 0 for ordinary text, near 1 where an answer runs in
    circles. In tokens or characters, as the answers come."""
    shares = [longest_repeat(answer) / len(answer) for answer in answers if len(answer)]
    return float(np.mean(shares)) if shares else None


def compression_ratio(texts: Sequence[str]) -> float | None:
    """Bytes of the answers, one a line, over their bytes when deflated (zlib, level 9, which looks 32 KiB back): above that of as many
    of SFT's where answers repeat themselves or one another (Shaib 2024, arxiv.org/abs/2403.00553). A Chinese character is three bytes, so
    compare like with like."""
    if not any(texts):
        return None
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    raw = "\n".join(texts).encode("utf-8", "surrogatepass")
    return len(raw) / len(packer.compress(raw) + packer.flush())


@lru_cache(1)
def refusing_phrases() -> tuple[str, ...]:
    return tuple(tomllib.loads(Path(__file__).with_name("refusals.toml").read_text("utf-8"))["phrases"])


def words_of_refusal(prompt: Prompt, completion: Completion) -> bool:
    """Whether one of the phrases of refusals.toml (English and Chinese) stands among the answer's first words."""
    beginning = completion.text.lstrip()[:FIRST_WORDS].casefold().replace("’", "'")
    return any(phrase in beginning for phrase in refusing_phrases())


def refusal_rate(
    prompts: Sequence[Prompt], completions: Sequence[Completion], refuses: Refuses = words_of_refusal
) -> Proportion:
    """Share of answers that refuse, with its interval by prompt. `refuses` judges an answer: by its words, or as a rubric or a model
    does."""
    refused = [float(refuses(prompt, completion)) for prompt, completion in zip(prompts, completions, strict=True)]
    return proportion(refused, [prompt.id for prompt in prompts])


# ----------------------------------------------------------------------------------------------- windows as numbers


def _numbers(answer: Items) -> Ints:
    """An answer's items as numbers: ids, or code points."""
    if isinstance(answer, str):
        return np.frombuffer(answer.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.int64)
    ids = np.asarray(answer)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise DataError(
            f"an answer is a text or a list of token ids, which are whole numbers, got {ids.dtype} of shape {ids.shape}"
        )
    return ids.astype(np.int64)


def _numbered(values: Ints) -> Ints:
    """Equal values by equal numbers, from 0."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _pairs(first: Ints, second: Ints) -> Ints:
    """Equal pairs of numbers, each from 0, by equal numbers."""
    return _numbered(first * (int(second.max(initial=0)) + 1) + second)


def _repeated(numbers: Ints) -> NDArray[np.bool_]:
    """Whether the number at each place comes twice or more; numbers from 0."""
    found: NDArray[np.bool_] = np.bincount(numbers, minlength=1)[numbers] > 1
    return found


def _ngrams(answers: Sequence[Items], n: int) -> tuple[Ints, Ints]:
    """A number for each n-gram of all answers, equal ones by equal numbers, and whose it is."""
    if n < 1:
        raise DataError(f"an n-gram needs n >= 1, got {n}")
    numbers = [_numbers(answer) for answer in answers]
    numbers = [np.pad(found, (0, max(0, n - len(found))), constant_values=-1) for found in numbers]  # -1: no item
    flat = _numbered(np.concatenate([*numbers, np.zeros(0, dtype=np.int64)]))
    owners = np.repeat(np.arange(len(numbers)), [len(found) for found in numbers])
    windows, count = flat, len(flat) - n + 1
    for place in range(1, n):
        windows = _pairs(windows[:-1], flat[place:])
    inside = owners[:count] == owners[n - 1 :] if len(flat) else np.zeros(0, dtype=bool)
    return windows[inside], owners[: max(0, count)][inside]
