"""Messages and token ids: prefixes kept, stops kept, nothing encoded twice."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from bridle.core.errors import DataError, ModelError
from bridle.core.records import Message, Prompt
from bridle.models.files.new_tokenizer import train_tokenizer
from bridle.models.template import PLAIN_TEMPLATE, Template, load_template
from tests.models.tiny import TEXTS, one_sentence, template, write_foreign

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL = (  # drops every earlier turn once an answer follows, as templates with thoughts do
    "{{ bos_token }}{% if messages[-1].role == 'assistant' %}{{ messages[-1].content }}{% else %}"
    "{% for message in messages %}{{ message.content }}{% endfor %}{% endif %}"
)
MULTI_TURN = Prompt(
    (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Joke?"))
)
TEXT = ["plain", "two\nlines", "你好，世界", "🙂👩‍👩‍👧 naïve", "tabs\tand  spaces", "ends with <", "𝔘𝔫𝔦 ‮ rtl"]


def qwen_like(folder: Path, generation_stops: list[int] | None = None) -> Path:
    """A folder whose eos is <|endoftext|> = pad, and whose turns are closed by <|im_end|>."""
    base = train_tokenizer(TEXTS, 300)
    base.tokenizer.add_special_tokens(
        [AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    )
    base.tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": {"content": "<|endoftext|>"}, "pad_token": "<|endoftext|>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if generation_stops is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation_stops}))
    return folder


def test_a_prompt_is_a_prefix_of_the_prompt_with_its_answer() -> None:
    t = template()
    for prompt in (Prompt.from_text("Hi"), MULTI_TURN):
        ids, answer = t.prompt_ids([prompt])[0], t.completion_ids([prompt], ["A joke."])[0]
        whole = t.render([*prompt.messages, Message("assistant", "A joke.")], answer_next=False)
        assert t.tokenizer.decode([*ids, *answer], skip_special_tokens=False) == whole
        assert ids[0] == t.tokenizer.token_to_id("<|doc|>")
        assert ids.count(ids[0]) == 1


def test_the_plain_template_writes_names_and_lines() -> None:
    assert template().render(MULTI_TURN.messages, answer_next=True) == (
        "<|doc|>System: Be brief.\nHuman: Hi\nAssistant: Hello<|end|>\nHuman: Joke?\nAssistant:"
    )


@pytest.mark.parametrize("text", ["Yes.", "", " 🙂 ", "a\nb"])
def test_a_completion_ends_in_its_stop_token(text: str) -> None:
    t = template()
    ids = t.completion_ids([MULTI_TURN], [text])[0]
    assert ids[-1] == t.eos_id
    assert [i for i in ids if i in t.stop_ids] == [t.eos_id]


def test_a_template_without_an_end_gets_one() -> None:
    t = replace(template(), source="{% for m in messages %}{{ m.content }}{% endfor %}")
    ids = t.completion_ids([Prompt.from_text("Hi")], ["Yes"])[0]
    assert ids[-1] == t.eos_id and t.decode(ids) == "Yes"


@pytest.mark.parametrize("text", TEXT)
def test_any_text_comes_back_from_its_ids(text: str) -> None:
    t = template()
    assert t.decode(t.completion_ids([Prompt.from_text(text)], [text])[0]) == text.strip()
    assert t.decode_batch([t.document_ids([text])[0]] * 2) == [text.strip()] * 2


def test_a_document_opens_and_ends() -> None:
    t = template()
    ids = t.document_ids(["A page."])[0]
    assert t.tokenizer.decode(ids, skip_special_tokens=False) == "<|doc|>A page.<|end|>"


def test_a_double_bos_is_refused() -> None:
    t = replace(template(), source="{{ bos_token }}" + PLAIN_TEMPLATE)
    with pytest.raises(ModelError, match="writes '<|doc|>' twice".replace("|", r"\|")):
        t.prompt_ids([Prompt.from_text("Hi")])


def test_a_template_that_changes_the_prompt_is_refused_when_used_and_when_loaded(tmp_path: Path) -> None:
    t = replace(template(), source=FORGETFUL)
    with pytest.raises(ModelError, match="not prefix-preserving"):
        t.completion_ids([Prompt.from_text("Hi")], ["Yes"])
    t.save(tmp_path, 96)
    with pytest.raises(ModelError, match="not prefix-preserving"):
        load_template(tmp_path)


def test_what_travels_with_a_prompt_is_read_by_the_template_that_wrote_it_alone() -> None:
    t, other = template(), replace(template(), source=CHATML)
    text = t.prompt_text(MULTI_TURN)
    [carrying] = t.encode([MULTI_TURN], [text])
    assert carrying == MULTI_TURN and carrying.encoded is not None
    assert (carrying.encoded.template, carrying.encoded.text) == (t.hash, text)
    assert list(carrying.encoded.ids) == t.prompt_ids([MULTI_TURN])[0]
    for one in (t, other):
        assert one.prompt_text(carrying) == one.render(MULTI_TURN.messages, answer_next=True)
        assert one.prompt_ids([carrying, MULTI_TURN]) == one.prompt_ids([MULTI_TURN]) * 2
        assert one.answer_text(carrying, "A joke.") == one.answer_text(MULTI_TURN, "A joke.")
    assert t.encoded(carrying) is carrying.encoded and other.encoded(carrying) is None and t.encoded(MULTI_TURN) is None


def test_an_answer_is_appended_to_the_text_that_travels_which_is_not_rendered_anew() -> None:
    t = template()
    [carrying] = t.encode([MULTI_TURN], ["<|doc|>System: Be brief."])
    assert (
        t.answer_text(carrying, "A joke.")
        == "\nHuman: Hi\nAssistant: Hello<|end|>\nHuman: Joke?\nAssistant: A joke.<|end|>"
    )


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no system turn') }}",
        "{% for m in messages %}",
        "{{ messages[7].content.x }}",
        "{{ 1 + 'a' }}",
        "{{ ().__class__.__bases__[0].__subclasses__() }}",
    ],
)
def test_a_template_that_cannot_render_is_one_sentence(source: str) -> None:
    with pytest.raises(ModelError, match="the chat template could not render 1 messages") as caught:
        replace(template(), source=source).prompt_ids([Prompt.from_text("Hi")])
    assert one_sentence(str(caught.value))


def test_what_templates_in_the_wild_use_is_there() -> None:
    source = "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
    rendered = replace(template(), source=source).render([Message("user", "<é>")] * 3, answer_next=False)
    assert rendered == '{"role": "user", "content": "<é>"}'


def test_stops_come_from_the_folder_and_from_the_template(tmp_path: Path) -> None:
    t = load_template(qwen_like(tmp_path))
    end, turn_end = t.tokenizer.token_to_id("<|endoftext|>"), t.tokenizer.token_to_id("<|im_end|>")
    assert t.stop_ids == {end, turn_end}
    ids = t.completion_ids([Prompt.from_text("Hi")], ["Yes"])[0]
    assert ids[-1] == turn_end and t.tokenizer.decode(ids, skip_special_tokens=False) == "Yes<|im_end|>"

    t = load_template(qwen_like(tmp_path, [turn_end, 5, end]))
    assert t.stop_ids == {end, turn_end, 5}


def test_the_pad_is_never_a_stop_even_where_the_folder_says_so(tmp_path: Path) -> None:
    """pad == eos is common; a reward model saved so would be scored one token too early."""
    folder = qwen_like(tmp_path)
    t = load_template(folder)
    assert t.pad_token == "<|endoftext|>"
    assert t.pad_id not in t.stop_ids
    assert t.tokenizer.get_added_tokens_decoder()[t.pad_id].special
    (tmp_path / "saved").mkdir()
    t.save(tmp_path / "saved", 96)
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert t.tokenizer.token_to_id(saved["pad_token"]) == t.pad_id
    again = load_template(tmp_path / "saved")
    assert (again.pad_id, again.stop_ids, again.eos_token) == (t.pad_id, t.stop_ids, t.eos_token)


@pytest.mark.parametrize("stops", [{0}, {0, 1}, {1, 2}])
def test_the_pad_without_any_special_token_left(stops: set[int]) -> None:
    t = replace(template(), pad_token="", stop_ids=frozenset(stops))
    assert t.pad_id not in stops


def test_named_templates_and_tokens_as_objects_are_read(tmp_path: Path) -> None:
    folder = qwen_like(tmp_path)
    named = [{"name": "tools", "template": "x"}, {"name": "default", "template": CHATML}]
    config = {"eos_token": {"content": "<|im_end|>"}, "bos_token": None, "chat_template": named}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    t = load_template(folder)
    assert (t.eos_token, t.bos_token, t.source) == ("<|im_end|>", "", CHATML)


def test_a_saved_template_is_the_same_template(tmp_path: Path) -> None:
    template().save(tmp_path, 96)
    again = load_template(tmp_path)
    assert again.hash == template().hash
    assert again.prompt_ids([MULTI_TURN]) == template().prompt_ids([MULTI_TURN])
    assert (again.pad_id, again.stop_ids) == (template().pad_id, template().stop_ids)


def test_ids_do_not_depend_on_padding_or_truncation_in_the_file(tmp_path: Path) -> None:
    t = train_tokenizer(TEXTS, 300)
    expected = t.prompt_ids([MULTI_TURN, Prompt.from_text("Hi")])
    t.tokenizer.enable_truncation(4)
    t.tokenizer.enable_padding(length=50)
    t.save(tmp_path, 96)
    assert load_template(tmp_path).prompt_ids([MULTI_TURN, Prompt.from_text("Hi")]) == expected


def test_a_vocabulary_too_small_for_bytes_is_refused() -> None:
    with pytest.raises(DataError, match="at least 259 entries, got 100"):
        train_tokenizer(TEXTS, 100)


def test_training_a_tokenizer_twice_gives_the_same() -> None:
    assert train_tokenizer(TEXTS, 300).hash == template().hash


def test_the_hash_knows_template_and_tokens() -> None:
    t: Template = template()
    assert replace(t, source=CHATML).hash != t.hash
    assert train_tokenizer(TEXTS[:1], 280).hash != t.hash


@pytest.mark.parametrize(
    ("generation", "config"),
    [(None, [1, 7]), ({}, [1, 7]), ({"eos_token_id": 9}, [1, 7]), ({"eos_token_id": [9, 11]}, 7), (None, 7)],
)
def test_what_ends_an_answer_is_what_ends_transformers(
    generation: dict[str, Any] | None, config: int | list[int], tmp_path: Path
) -> None:
    """Where generation_config.json is there, what config.json lists stops nothing; where it is not, that does."""
    from transformers import AutoModelForCausalLM

    write_foreign(tmp_path, "gemma")
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "eos_token_id": config}))
    (tmp_path / "generation_config.json").unlink()
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id
    expected = set(theirs if isinstance(theirs, list) else [] if theirs is None else [theirs])
    assert load_template(tmp_path).stop_ids == expected | {template().eos_id}


def test_a_stop_token_that_config_json_alone_names_is_known(tmp_path: Path) -> None:
    """With no name of it in tokenizer_config.json: it ends turns, whatever generation_config.json says."""
    template().save(tmp_path, 96)
    named = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**named, "eos_token": None}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": template().eos_id}))
    (tmp_path / "generation_config.json").write_text("{}")
    assert load_template(tmp_path).stop_ids == {template().eos_id}
