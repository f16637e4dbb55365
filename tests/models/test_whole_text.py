"""Answers are encoded within the whole dialogue, as transformers encodes it; stops follow them; and they come back as they were."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from bridle.core.errors import ModelError
from bridle.core.records import Completion, FinishReason, Message, Pair, Prompt
from bridle.models.control import unknown_ids
from bridle.models.encoding import APART, encode_demonstrations, encode_pairs
from bridle.models.template import Template, load_template, with_stops
from bridle.playground.world import World
from tests.models.families import CHATML, FAMILIES, HARMONY, MISTRAL, SPACELESS, family
from tests.models.tiny import one_sentence, template

HI = Prompt.from_text("Hi")
TALK = Prompt(
    (Message("user", "Tell me a joke."), Message("assistant", "The rain fell."), Message("user", "A bad day!"))
)
ANSWERS = ["The cat.", "yes", "  two", "\nnew", "\n\nA line\n\n\nmore ", "1.", "é🙂", "- a\n- b"]
TRIMMED = ("llama2", "llama2-first", "llama3", "gemma", "gemma-lines")  # by the template


def saved(folder: Path, source: str, tokenizer: Tokenizer, config: dict[str, object], stops: object = None) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": source}))
    if stops is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    return folder


# ------------------------------------------------------------------------------------------------ the whole text


@pytest.mark.parametrize("name", FAMILIES)
def test_prompt_and_answer_are_the_ids_of_the_whole_dialogue(name: str) -> None:
    f = family(name)
    t, seen = f.template, 0
    for prompt in (HI, TALK):
        [head] = t.prompt_ids([prompt])
        assert head == f.transformers_ids(list(prompt.messages), add_generation_prompt=True)
        suffixes = [t.answer_text(prompt, text) for text in ANSWERS]
        for text, answer in zip(ANSWERS, t.answers([prompt] * len(ANSWERS), ANSWERS, suffixes), strict=True):
            expected = f.transformers_ids([*prompt.messages, Message("assistant", text)])
            assert t.tokenizer.id_to_token(answer.ids[-1]) == f.closing
            whole = [*head, *answer.ids]
            assert answer.apart == (expected[: len(head)] != head)
            if not answer.apart:
                assert whole == expected[: len(whole)] and not t.stop_ids.intersection(expected[len(whole) :])
                seen += 1
    assert seen >= 2 * len(ANSWERS) - 6


@pytest.mark.parametrize("name", ["qwen", "gemma"])
def test_what_the_tokenizer_would_join_over_the_border_is_encoded_apart_and_noted(name: str) -> None:
    """The prompt is asked with its own ids, and all together is the text that was written."""
    t = family(name).template
    text = "\nnew" if name == "qwen" else "A line"
    [(head, answer)], report = encode_demonstrations(t, [(HI, text)], 96)
    assert head == t.prompt_ids([HI])[0] and report.noted == {APART: 1} and report.kept == 1
    whole = t.render([*HI.messages, Message("assistant", text)], answer_next=False)
    assert t.tokenizer.decode([*head, *answer], skip_special_tokens=False) == whole.strip()
    joined = t.tokenizer.encode(whole, add_special_tokens=False).ids
    assert joined[: len(head)] != head and joined[len(head) :][: len(answer) - 1] == answer[1:]
    assert "1 noted: " + APART in report.lines()[1]
    pair = Pair(HI, Completion(HI.id, text), Completion(HI.id, "no"))
    [group], report = encode_pairs(t, [pair], 96)
    assert report.noted == {APART: 1} and group.answers[0] == answer


def test_what_a_model_sampled_is_kept_whatever_its_text_would_give() -> None:
    t = family("llama2").template
    own = Completion(HI.id, "yes", (5, 6, 2), (-1.0,) * 3, FinishReason.STOP, "stamp")
    [group], _ = encode_pairs(t, [Pair(HI, own, Completion(HI.id, "no"))], 96)
    assert group.answers == [[5, 6, 2], t.completion_ids([HI], ["no"])[0]]


def test_the_playgrounds_answers_have_the_ids_that_they_had_apart() -> None:
    """Each answer of its own encoding: the plain template begins an answer where every tokenizer of ours begins a token."""
    import random

    t, world, rng = template(), World.load(), random.Random(3)
    prompts = [world.prompt(rng) for _ in range(150)]
    answers = [world.answer(rng, prompt, "good") for prompt in prompts] + [*ANSWERS, "'s", "  .", "\t"]
    prompts += [HI] * (len(answers) - len(prompts))
    apart = [
        t.tokenizer.encode(t.answer_text(prompt, text), add_special_tokens=False).ids
        for prompt, text in zip(prompts, answers, strict=True)
    ]
    assert t.completion_ids(prompts, answers) == apart
    assert t.decode_batch(apart) == answers


# ------------------------------------------------------------------------------------------------- ids → text


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "word-pieces"])
def test_an_answer_comes_back_with_the_white_space_at_its_ends(name: str) -> None:
    t = family(name).template
    texts = ["yes", " yes", "\n\nyes", "  yes\n  no ", "yes\n"]
    expected = [text.strip() for text in texts] if name in TRIMMED else texts
    rows = t.completion_ids([HI] * len(texts), texts)
    assert t.decode_batch(rows) == expected and [t.decode(row) for row in rows] == expected
    cut_off = [row[:-1] for row in rows]
    assert [text.strip() for text in t.decode_batch(cut_off)] == [text.strip() for text in texts]


@pytest.mark.parametrize("name", ["llama2", "llama2-first", "always", "unigram"])
def test_a_first_space_is_not_lost(name: str) -> None:
    """Such tokenizers' decoders lose the space of a text's first word, and an answer is no text's beginning."""
    t = family(name).template
    [ids] = t.completion_ids([HI], ["yes no"])
    body = [i for i in ids if i not in t.stop_ids]
    sign = t.tokenizer.token_to_id("▁")
    assert t.decode([sign, sign, *body]) == "  " + t.decode(body)


def test_what_the_template_writes_before_an_answer_is_none_of_it() -> None:
    t = family("harmony").template
    [ids] = t.completion_ids([HI], ["final yes"])
    assert t.decode(ids) == "final yes" and "final" in t.tokenizer.decode(ids)
    other = t.tokenizer.encode("<|channel|>analysis<|message|>no", add_special_tokens=False).ids
    assert t.decode([*other, ids[-1]]) == "analysisno", "another channel is what the model wrote"
    t = family("qwen3").template
    thought = t.tokenizer.encode("<think>\nno\n</think>\n\nyes<|im_end|>", add_special_tokens=False).ids
    assert t.decode(thought) == "<think>\nno\n</think>\n\nyes"
    assert t.decode(t.completion_ids([HI], ["yes"])[0]) == "yes"


# ------------------------------------------------------------------------------------------------------- stops


@pytest.mark.parametrize("name", FAMILIES)
def test_the_stop_is_what_follows_the_answer(name: str, tmp_path: Path) -> None:
    f = family(name)
    t = f.template
    config = {"eos_token": t.eos_token, "bos_token": t.bos_token or None}
    loaded = load_template(saved(tmp_path, t.source, t.tokenizer, config))
    assert loaded.stop_ids == {t.eos_id, t.tokenizer.token_to_id(f.closing)}
    [ids] = loaded.completion_ids([HI], ["yes, you can"])
    assert ids[-1] == t.tokenizer.token_to_id(f.closing) and loaded.decode(ids).strip()[:3] == "yes"


def test_of_several_end_tokens_the_one_that_ends_the_turn_is_trained(tmp_path: Path) -> None:
    f = family("llama3").template
    header, turn, text = (f.tokenizer.token_to_id(n) for n in ("<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"))
    config = {"eos_token": "<|end_of_text|>", "bos_token": "<|begin_of_text|>"}
    t = load_template(saved(tmp_path, f.source, f.tokenizer, config, [text, turn]))
    assert t.stop_ids == {text, turn} and t.completion_ids([HI], ["yes"])[0][-1] == turn
    between = f.source.replace(
        "m.content | trim + '<|eot_id|>'",
        "m.content | trim + ('' if loop.last and m.role == 'assistant' else '<|eot_id|>')",
    )
    t = load_template(saved(tmp_path, between, f.tokenizer, config, [text, turn]))
    assert t.completion_ids([HI], ["yes"])[0][-1] == turn, "it writes none after the last"
    t = load_template(saved(tmp_path, between.replace("<|eot_id|>", "!"), f.tokenizer, config, [text, turn]))
    assert t.completion_ids([HI], ["yes"])[0][-1] == text and header not in t.stop_ids


@pytest.mark.parametrize("name", ["llama2-first", "mistral", "unigram", "word-pieces"])
def test_a_character_that_is_unknown_ends_no_answer(name: str, tmp_path: Path) -> None:
    """Though the model's own settings name that token; and whatever is asked or answered to find the stops."""
    t = family(name).template
    [unknown] = unknown_ids(t.tokenizer)
    config = {"eos_token": t.eos_token, "bos_token": t.bos_token or None}
    loaded = load_template(saved(tmp_path, t.source, t.tokenizer, config, [unknown, t.eos_id]))
    assert loaded.stop_ids == {t.eos_id}
    [ids] = loaded.completion_ids([HI], ["yes 🙂 no"])
    assert unknown in ids and ids.index(t.eos_id) == len(ids) - 1 > ids.index(unknown) + 1


def word_level(words: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken("<unk>", special=True), AddedToken("</s>", special=True)])
    return tokenizer


def test_an_answer_that_the_tokenizer_can_write_is_found(tmp_path: Path) -> None:
    source = "{% for m in messages %}{{ m.content + (' </s> ' if m.role == 'assistant' else ' ') }}{% endfor %}"
    t = load_template(saved(tmp_path, source, word_level(["</s>", "dog", "cat"]), {"eos_token": "</s>"}))
    assert t.turn_end.probe == "dog" and t.stop_ids == {1} and t.completion_ids([HI], ["cat dog"]) == [[3, 2, 1]]
    with pytest.raises(ModelError, match="can write no answer") as caught:
        load_template(saved(tmp_path, source, word_level(["</s>"]), {"eos_token": "</s>"}))
    assert one_sentence(str(caught.value))


def test_a_stop_that_leaves_nothing_of_an_answer_is_refused(tmp_path: Path) -> None:
    t = family("harmony").template
    channel = t.tokenizer.token_to_id("<|channel|>")
    folder = saved(tmp_path, HARMONY, t.tokenizer, {"eos_token": "<|return|>"}, [t.turn_end.token, channel])
    with pytest.raises(
        ModelError, match="writes the stop token '<|channel|>' before an answer".replace("|", r"\|")
    ) as caught:
        load_template(folder)
    assert one_sentence(str(caught.value))
    with pytest.raises(ModelError, match="'<unk>' is what the tokenizer writes for characters") as caught:
        load_template(saved(tmp_path, MISTRAL, family("mistral").template.tokenizer, {"eos_token": "<unk>"}))
    assert one_sentence(str(caught.value))


def test_a_stop_that_is_text_cuts_no_answer_that_was_written(tmp_path: Path) -> None:
    """Some base models' settings name a line's end among their stops."""
    t = family("qwen").template
    line = t.tokenizer.token_to_id("Ċ")
    loaded = load_template(saved(tmp_path, CHATML, t.tokenizer, {"eos_token": "<|im_end|>"}, [line, t.eos_id]))
    assert line in loaded.stop_ids
    assert loaded.completion_ids([HI], ["yes\nno"]) == t.completion_ids([HI], ["yes\nno"])


def test_a_template_without_an_end_ends_as_its_tokenizer_does() -> None:
    t = family("mistral-spaceless").template
    bare = with_stops(replace(t, source=SPACELESS.replace(" + eos_token", "")))
    assert isinstance(bare, Template) and bare.stop_ids == {t.eos_id}
    assert bare.completion_ids([HI], ["yes"]) == t.completion_ids([HI], ["yes"])


def test_an_answer_of_one_piece_gets_no_space_where_it_was_joined_with_the_cue() -> None:
    """SentencePiece's way: encoded apart `the` is `▁the`, though after a line end it is written without the space."""
    cue = "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    source = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}" + cue
    t = replace(family("llama2").template, source=source)
    for answer in ("the", "yes", "\nthe"):
        assert t.decode(t.completion_ids([HI], [answer])[0]) == answer
