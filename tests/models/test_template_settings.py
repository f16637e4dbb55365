"""What chat templates ask for is there as transformers gives it: tags, the day, variables, tokens; and where a cue opens a thought."""

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from bridle.core.errors import DataError, ModelError
from bridle.core.records import Completion, FinishReason, Message, Pair, Prompt
from bridle.models.encoding import (
    DROPPED,
    HINTS,
    LEFT_OUT,
    OLD_TURNS,
    REFUSED,
    REWRITTEN,
    UNTHOUGHT,
    encode_demonstrations,
    encode_pairs,
    prompts_that_fit,
)
from bridle.models.files.chat_template import TemplateSettings
from bridle.models.template import Template, load_template, with_stops
from tests.models.families import CHATML, family, transformers_ids, transformers_text
from tests.models.tiny import one_sentence, template

SYSTEM, HI, TOLD, MORE = (
    Message("system", "Be brief."),
    Message("user", "Hi"),
    Message("assistant", "Yes."),
    Message("user", "Why?"),
)
ASKED, LONG = Prompt((HI,)), Prompt((HI, TOLD, MORE))
GEMMA = (  # turns must take turns, and there is no system
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('order') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ANSWER = "{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}"
THINKING = {  # the cue opens a thought, which the template drops (R1), closes at once (Nemotron), or whose line end is joined (Qwen3.5)
    "r1": ("", ANSWER, "<think>\n"),
    "nemotron": ("{% if '</think>' not in c %}{% set c = '<think></think>' + c %}{% endif %}", "", "\n"),
    "qwen3.5": ("{% if '</think>' not in c %}{% set c = '<think>\n\n</think>\n\n' + c %}{% endif %}", "", "\n"),
}  # fmt: skip


def chatml(source: str = CHATML, **settings: Any) -> Template:
    """A template beside Qwen's kind of tokenizer."""
    return with_stops(replace(family("qwen").template, source=source, settings=TemplateSettings(**settings)))


def thinking(kind: str) -> Template:
    last, every, _ = THINKING[kind]
    return chatml(
        "{% for m in messages %}{% set c = m.content %}{% if m.role == 'assistant' %}" + every
        + "{% if loop.last %}" + last + "{% endif %}{% endif %}{{ '<|im_start|>' + m.role + '\n' + c + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )  # fmt: skip


def text(t: Template) -> str:
    return t.render([HI], answer_next=True)


# ------------------------------------------------------------------------------------------- as transformers has them


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{%- generation %}{{ m.content }}{% endgeneration -%}{% endfor %}",
        "{% set x = 'a' %}{% for m in messages %}{% generation %}{% set x = m.content %}{{ x }}{% endgeneration %}{{ x }}{% endfor %}",
        "{% for m in messages %}\n  {% generation %}\n  {{ m.content }}\n  {% endgeneration %}\n{% endfor %}",
        "{{ messages[0].content }}{{ tools is none }}{{ documents is none }}{{ tools is defined }}",
        "{{ messages | tojson(separators=(',', ':'), sort_keys=true) }}{{ {'é': 1} | tojson(ensure_ascii=true, indent='-') }}",
        "{{ messages[0].content }}{{ strftime_now('%d %b %Y %H:%M') }}{% macro day() %}{{ strftime_now('%j') }}{% endmacro %}{{ day() }}",
        "{{ messages[0].content }}{{ bos_token is defined }}{{ pad_token is defined }}{{ unk_token }}{{ image_token }}{{ eos_token }}",
        "{{ messages[0].content }}{{ enable_thinking is false }}{{ builtin_tools | default([]) | join('+') }}",
    ],
)  # fmt: skip
def test_what_templates_ask_for_is_what_transformers_gives_them(source: str) -> None:
    chosen = {"enable_thinking": False, "builtin_tools": ["a", "b"]}
    t = replace(
        family("qwen").template, source=source, tokens={"unk_token": "<unk>", "image_token": "<im>"},
        settings=TemplateSettings("2025-02-03", chosen),
    )  # fmt: skip
    for messages in ([HI], [HI, TOLD]):
        assert t.render(messages, answer_next=False) == transformers_text(t, messages)


def test_the_day_is_never_today(tmp_path: Path) -> None:
    source = "{{ strftime_now('%Y-%m-%d') }}" + CHATML
    usual, other = chatml(source), chatml(source, template_date="2026-11-29")
    assert text(usual).startswith("2024-07-26") and text(other).startswith("2026-11-29") and usual.hash != other.hash
    assert date.today().isoformat() not in text(usual)
    assert chatml(template_date="2026-11-29").hash == chatml().hash, (
        "a template that does not ask is the same on every day"
    )
    for t, stored in ((other, True), (chatml(template_date="2026-11-29"), False)):
        t.save(tmp_path, 96)
        assert (tmp_path / "bridle_template.json").exists() is stored
        assert load_template(tmp_path).hash == t.hash
        assert load_template(tmp_path, TemplateSettings()).hash == replace(t, settings=TemplateSettings()).hash
        (tmp_path / "bridle_template.json").unlink(missing_ok=True)


def test_variables_reach_the_template_and_stay_with_the_model(tmp_path: Path) -> None:
    source = CHATML.replace("assistant\n' }}", "assistant\n' + ('' if enable_thinking else '<think></think>') }}")
    t = chatml(source, template_kwargs={"enable_thinking": False})
    assert text(t).endswith("<think></think>") and t.prompt_ids([ASKED])[0] == transformers_ids(
        t, [HI], add_generation_prompt=True
    )
    t.save(tmp_path, 96)
    assert load_template(tmp_path).settings == t.settings and load_template(tmp_path).hash == t.hash
    (tmp_path / "bridle_template.json").write_text('{"template_kwargs": 3}')
    with pytest.raises(ModelError, match=r"bridle_template\.json must hold template_date") as caught:
        load_template(tmp_path)
    assert one_sentence(str(caught.value))


def test_a_variable_that_is_missing_is_asked_for_by_the_settings_name() -> None:
    source = "{{ mood.upper() }}" + CHATML
    with pytest.raises(ModelError, match="'mood' is undefined; model.template_kwargs gives it variables") as caught:
        chatml(source)
    assert one_sentence(str(caught.value)) and text(chatml(source, template_kwargs={"mood": "calm"})).startswith(
        "CALM<"
    )


def test_tokens_that_the_tokenizer_names_stay_with_the_model(tmp_path: Path) -> None:
    t = replace(chatml("{{ unk_token }}" + CHATML), tokens={"unk_token": "<|endoftext|>"})
    t.save(tmp_path, 96)
    assert (
        load_template(tmp_path).tokens == t.tokens and load_template(tmp_path).hash == t.hash != chatml(t.source).hash
    )


# ---------------------------------------------------------------------------------------------------- system messages


def test_system_messages_are_folded_by_a_setting_and_refused_with_its_name_else() -> None:
    prompt, twice = Prompt((SYSTEM, HI, TOLD, MORE)), Prompt((SYSTEM, Message("system", "Be kind."), HI))
    plain, folding = chatml(GEMMA), chatml(GEMMA, fold_system=True)
    _, report = prompts_that_fit(plain, [prompt, ASKED], 8, 256)
    assert report.dropped == {REFUSED: 1} and "model.fold_system = true" in HINTS[REFUSED]
    with pytest.raises(DataError, match="set model.fold_system = true"):
        prompts_that_fit(plain, [prompt], 8, 256)[1].check(0.5)
    with pytest.raises(
        ModelError, match="System role not supported; if it takes no system message, model.fold_system = true"
    ) as caught:
        plain.prompt_ids([prompt])
    assert one_sentence(str(caught.value)) and text(folding) == text(plain)
    folded = [Message("user", "Be brief.\n\nHi"), TOLD, MORE]
    assert folding.prompt_ids([prompt])[0] == transformers_ids(folding, folded, add_generation_prompt=True)
    assert "Be brief.\n\nBe kind.\n\nHi" in folding.prompt_text(twice)
    _, report = prompts_that_fit(folding, [prompt, twice, Prompt((HI, TOLD, SYSTEM, MORE))], 8, 256)
    assert report.kept == 3 and not report.noted


def test_a_folded_system_message_writes_no_control_token() -> None:
    folding = chatml(GEMMA, fold_system=True)
    end = folding.tokenizer.token_to_id("<|im_end|>")
    [ids] = folding.prompt_ids([Prompt((Message("system", "Be <|im_end|> brief."), HI))])
    assert ids.count(end) == 1 and "Be <|im_end|> brief.\n\nHi" in folding.tokenizer.decode(
        ids, skip_special_tokens=False
    )


def test_a_system_message_that_the_template_leaves_out_is_not_lost_in_silence() -> None:
    silent = chatml(CHATML.replace("{{ '<|im_start|>' + m.role", "{% if m.role != 'system' %}{{ '<|im_start|>' + m.role").replace(
        "'\n' }}{% endfor %}", "'\n' }}{% endif %}{% endfor %}"
    ))  # fmt: skip
    _, report = prompts_that_fit(silent, [Prompt((SYSTEM, HI)), ASKED], 8, 256)
    assert report.dropped == {LEFT_OUT: 1} and "model.fold_system = true" in HINTS[LEFT_OUT]
    folding = replace(silent, settings=TemplateSettings(fold_system=True))
    assert prompts_that_fit(folding, [Prompt((SYSTEM, HI))], 8, 256)[1].kept == 1


def test_a_template_that_takes_contents_in_parts_is_refused() -> None:
    source = "{% for m in messages %}{{ m.role }}: {% for c in m.content %}{{ c.text }}{% endfor %}{{ eos_token }}{% endfor %}"
    with pytest.raises(ModelError, match="takes? contents in parts") as caught:
        chatml(source)
    assert one_sentence(str(caught.value))


# ------------------------------------------------------------------------------------------ cues that open a thought


@pytest.mark.parametrize("kind", THINKING)
def test_an_answer_without_a_thought_follows_the_cue_as_far_as_the_template_has_it(kind: str) -> None:
    t = thinking(kind)
    assert t.unkept_cue == THINKING[kind][2]
    for prompt in (ASKED, LONG, Prompt((HI, Message("assistant", "<think>\nOh.\n</think>\n\nYes."), MORE))):
        [(before, after)], report = encode_demonstrations(t, [(prompt, "The cat.")], 256)
        whole = transformers_ids(t, [*prompt.messages, Message("assistant", "The cat.")])
        assert [*before, *after] == whole[: len(before) + len(after)] and report.noted == {UNTHOUGHT: 1}
        assert t.tokenizer.id_to_token(after[-1]) == "<|im_end|>" and t.decode(after) == "The cat."
        [cue] = t.prompt_ids([prompt])
        assert cue == transformers_ids(t, prompt.messages, add_generation_prompt=True), (
            "a model is asked with all of it"
        )
        assert before == cue[: len(before)] != cue


@pytest.mark.parametrize("kind", THINKING)
def test_a_thought_is_trained_after_the_whole_cue_or_the_row_is_refused(kind: str) -> None:
    t, answer = thinking(kind), "<think>\nOh.\n</think>\n\nThe cat."
    rows, report = encode_demonstrations(t, [(ASKED, answer)], 256)
    if kind == "r1":
        assert not rows and report.dropped == {DROPPED: 1} and "thoughts" in HINTS[DROPPED]
    else:
        [(before, after)] = rows
        whole = transformers_ids(t, [HI, Message("assistant", answer)])
        assert [*before, *after] == whole[: len(before) + len(after)] and not report.noted
        assert [before] == t.prompt_ids([ASKED])


def test_compared_answers_share_their_cue() -> None:
    """Those that were written elsewhere the part of it that both have; with one that a model wrote, which follows all of it, none but
    such are compared."""
    t = thinking("r1")
    good, bad = Completion(ASKED.id, "The cat."), Completion(ASKED.id, "A dog!")
    [group], report = encode_pairs(t, [Pair(ASKED, good, bad)], 256)
    whole = transformers_ids(t, [HI, Message("assistant", "The cat.")])
    assert [*group.prompt, *group.answers[0]] == whole[: len(group.prompt) + len(group.answers[0])]
    assert report.noted == {UNTHOUGHT: 1}
    own = Completion(ASKED.id, "no", (5, 6, 2), (-1.0,) * 3, FinishReason.STOP, "stamp")
    groups, report = encode_pairs(t, [Pair(ASKED, own, bad)], 256)
    assert not groups and report.dropped == {REWRITTEN: 1}
    [group], _ = encode_pairs(t, [Pair(ASKED, own, replace(own, text="yes", token_ids=(7, 6, 2)))], 256)
    assert [group.prompt] == t.prompt_ids([ASKED])


def test_a_prompt_that_is_cut_keeps_the_cue_that_its_answer_follows() -> None:
    t = thinking("r1")
    [(whole, answer)], _ = encode_demonstrations(t, [(LONG, "The cat.")], 256)
    [(before, after)], report = encode_demonstrations(t, [(LONG, "The cat.")], len(whole) + len(answer) - 1)
    assert report.cut == {OLD_TURNS: 1} and after == answer
    assert before == encode_demonstrations(t, [(Prompt((MORE,)), "The cat.")], 256)[0][0][0]


def test_a_spelt_control_token_stays_text_where_the_cue_is_not_whole() -> None:
    t, prompt = thinking("r1"), Prompt.from_text("What is <|im_end|>?")
    [(before, after)], _ = encode_demonstrations(t, [(prompt, "The <|im_end|>.")], 256)
    written = t.tokenizer.decode([*before, *after], skip_special_tokens=False)
    assert written.endswith("<|im_start|>assistant\nThe <|im_end|>.<|im_end|>")
    assert [*before, *after].count(after[-1]) == 2


def test_other_templates_keep_their_whole_cue() -> None:
    for name in ("qwen", "qwen3", "harmony", "llama2", "gemma", "mistral"):
        t = family(name).template
        assert t.unkept_cue == "" and t.before_answers(ASKED, ["yes"]) is ASKED
    assert template().unkept_cue == ""
    with pytest.raises(ModelError, match="not prefix-preserving"):  # another cue than a thought's
        chatml(CHATML.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>Assistant:' }}"))
