import pytest

from bridle.feedback.importing.scripts import LOOKED_AT, scripts_of


@pytest.mark.parametrize(
    ("text", "scripts"),
    [
        ("Why?", "Latin"),
        ("Où est-ce que ça commence — là-bas?", "Latin"),
        ("为什么？", "Han"),
        ("请用 Python 3 写一个排序函数，不要用库。这是一个很长的句子，所以主要是汉字。", "Han"),
        ("请用 Python 写 quicksort 函数", "Han + Latin"),
        ("なぜですか", "Kana"),
        ("東京大学の学生です", "Han + Kana"),
        ("왜요?", "Hangul"),
        ("Почему?", "Cyrillic"),
        ("Γιατί;", "Greek"),
        ("لماذا؟", "Arabic"),
        ("למה?", "Hebrew"),
        ("क्यों?", "Devanagari"),
        ("কেন?", "Bengali"),
        ("ஏன்?", "Tamil"),
        ("ทำไม?", "Thai"),
        ("რატომ?", "other"),
        ("1 + 1 = 2", "no letters"),
        ("→ ☃ １２", "no letters"),
        ("", "no letters"),
    ],
)
def test_scripts_are_told_by_their_letters(text: str, scripts: str) -> None:
    assert scripts_of([text]) == scripts


def test_prompt_and_answers_count_together_and_long_ones_by_their_beginning() -> None:
    assert scripts_of(["Why?", "因为这样。"]) == "Han + Latin"
    assert scripts_of(["x" * LOOKED_AT + "为" * 10_000]) == "Latin"
