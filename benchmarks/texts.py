"""Words without a meaning, of which every tokenizer here makes a token each: equal shapes for all contestants, and no padding."""

from __future__ import annotations

from random import Random

from harness import MODEL

SPECIAL = ("<pad>", "<end>", "<unk>")
LARGE = MODEL.startswith("q")  # of a card: rows and a vocabulary as users have them
WORDS = (151_936 if LARGE else 4096) - len(SPECIAL)
PROMPT, ANSWER = (128, 384) if LARGE else (32, 64)  # tokens; an answer's last is <end>


def text(words: int, rng: Random) -> str:
    return " ".join(f"w{rng.randrange(WORDS)}" for _ in range(words))


def texts(count: int, words: int, seed: int) -> list[str]:
    rng = Random(seed)
    return [text(words, rng) for _ in range(count)]


def prompts(count: int, words: int = PROMPT) -> list[str]:
    return texts(count, words, 1)


def answers(count: int, tokens: int = ANSWER, seed: int = 2) -> list[str]:
    """Texts that are so many tokens with the stop token behind them."""
    return texts(count, tokens - 1, seed)


def demonstrations(count: int) -> list[tuple[str, str]]:
    return list(zip(prompts(count), answers(count), strict=True))


def ragged(count: int, least: int, most: int) -> list[tuple[str, str]]:
    """Demonstrations of `least` to `most` tokens, a third of them prompt."""
    rng = Random(3)
    sizes = [rng.randint(least, most) for _ in range(count)]
    return [(text(size // 3, rng), text(size - size // 3 - 1, rng)) for size in sizes]


def pairs(count: int) -> list[tuple[str, str, str]]:
    return list(zip(prompts(count), answers(count), answers(count, seed=4), strict=True))


def score(answer: str) -> float:
    """A reward that costs nothing and tells answers apart."""
    return len(answer) / 100
