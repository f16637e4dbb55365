"""Small inputs of the kinds that people bring, each with its right outcome: what is kept, and what is skipped for which reason."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bridle.core.errors import DataError
from bridle.feedback.importing.files.source import RowSource
from bridle.feedback.importing.forms.imported import ImportedRow
from bridle.feedback.importing.importer import import_file
from bridle.feedback.importing.reasons import Note, Reason
from bridle.feedback.importing.report import ImportReport, read_examples
from bridle.feedback.rankings import pairs_of
from bridle.feedback.store.ratings import ratings, solutions
from bridle.feedback.store.store import Store

Counts = dict[str, int]
TWO_PREFERENCES = {"preference": 2}
CASES: dict[str, tuple[Counts, dict[Reason, int]] | str] = {  # kept, skipped; or words of the error
    "A01_pku_saferlhf.jsonl": (TWO_PREFERENCES, {}),
    "A02_openai_dpo.jsonl": ({"preference": 1}, {}),
    "A03_swift_rejected_response.jsonl": (TWO_PREFERENCES, {}),
    "A05_axolotl_messages_chosen.jsonl": (TWO_PREFERENCES, {}),
    "A06_intel_orca_dpo.jsonl": (TWO_PREFERENCES, {}),
    "A07_truthy_dpo_system_prompt.jsonl": ({"preference": 1}, {}),
    "A08_prompt_system_completion.jsonl": ({"demonstration": 1}, {}),
    "A10_prompt_history.jsonl": ({"preference": 1}, {}),
    "A11_lf_old_ranking.json": ({"ranking": 2}, {}),
    "A13_alpaca_eval_annotations.json": ({"preference": 1, "tie": 1}, {}),
    "A14_shp.jsonl": ({"preference": 1}, {}),
    "A16_summarize_feedback.jsonl": ({"preference": 1}, {}),
    "A19_ultrafeedback_raw.jsonl": ({"ranking": 1}, {}),
    "A20_ultrafeedback_binarized.jsonl": ({"preference": 1, "tie": 1}, {}),
    "A21_helpsteer.jsonl": ({"rating": 2}, {}),
    "A23_stack_exchange_paired.jsonl": ({"preference": 1}, {}),
    "A26_openwebui_feedback.json": ({"preference": 1}, {}),
    "A27_labelstudio_pairwise.json": (TWO_PREFERENCES, {}),
    "A33_pku_full_columns.jsonl": ({"preference": 1}, {}),
    "B01_prompt_response.jsonl": ({"demonstration": 2}, {}),
    "B02_question_answer.jsonl": ({"demonstration": 2}, {}),
    "B03_dolly.jsonl": ({"demonstration": 1}, {}),
    "B04_label_minus1.jsonl": ({"vote": 2}, {}),
    "B05_label_string.jsonl": ({"vote": 4}, {}),
    "B07_is_good_desirable.jsonl": ({"vote": 2, "rating": 2}, {}),
    "B09_verl.jsonl": ({"checkable": 1}, {}),
    "B10_trl_grpo_solution.jsonl": ({"checkable": 2}, {}),
    "B11_openai_weight0.jsonl": ({"demonstration": 1}, {Reason.NOT_TRAINED: 1}),
    "B13_openai_tools.jsonl": ({}, {Reason.TOOLS: 3}),
    "B15_content_parts.jsonl": ({"demonstration": 1}, {Reason.IMAGES: 1}),
    "B16_images_field.jsonl": ({}, {Reason.IMAGES: 1}),
    "C01_empty_system.jsonl": ({"demonstration": 1, "preference": 2}, {}),
    "C02_developer_role.jsonl": ({"demonstration": 4}, {}),
    "C03_diverge_early.jsonl": ({}, {Reason.DIVERGES: 1, Reason.NO_ANSWER: 1}),
    "C04_prompt_ends_assistant.jsonl": ({}, {Reason.NO_USER_TURN: 2}),
    "C05_dialogue_ends_user.jsonl": ({"demonstration": 1, "prompt": 1}, {}),
    "C06_starts_assistant.jsonl": ({"demonstration": 1}, {}),
    "C07_two_users.jsonl": ({"demonstration": 1}, {}),
    "C08_hh_system.jsonl": ({"preference": 4}, {}),
    "C09_chatml_in_strings.jsonl": (TWO_PREFERENCES, {}),
    "C10_special_tokens_user.jsonl": ({"demonstration": 2}, {}),
    "C12_swift_query_response.json": ({"demonstration": 3}, {}),
    "C14_same_prompt_spaces.jsonl": ({"preference": 1}, {Reason.DUPLICATE: 2}),
    "C15_json_string_columns.jsonl": ({"preference": 1, "demonstration": 1}, {}),
    "D01_three_annotators.jsonl": ({"preference": 4}, {}),
    "D02_margin_strength.jsonl": ({"preference": 3}, {}),
    "D03_tie_flag.jsonl": ({"tie": 2, "both_bad": 1}, {}),
    "D04_conflict_a.jsonl": (TWO_PREFERENCES, {}),
    "D04_conflict_b.jsonl": (TWO_PREFERENCES, {}),
    "D05_demo_and_pref_mixed.jsonl": ({"preference": 40, "demonstration": 1}, {}),
    "E01_gbk.jsonl": ({"preference": 3}, {}),
    "E03_utf16.jsonl": ({"preference": 3}, {}),
    "E04_bom_crlf.jsonl": ({"preference": 3}, {}),
    "E05_bom_list.json": ({"preference": 3}, {}),
    "E07.csv": (TWO_PREFERENCES, {}),
    "E08.tsv": ({"demonstration": 1}, {}),
    "E10_columns.json": (TWO_PREFERENCES, {}),
    "E11_columns_indented.json": (TWO_PREFERENCES, {}),
    "E13_nested_data.json": (TWO_PREFERENCES, {}),
    "E14_nested_data_indented.json": (TWO_PREFERENCES, {}),
    "E15_one_object_indented.json": ({"demonstration": 1}, {}),
    "E16_concatenated.json": (TWO_PREFERENCES, {}),
    "E18_list_lines.jsonl": (TWO_PREFERENCES, {}),
    "E19_trailing_commas.json": (TWO_PREFERENCES, {}),
    "E20_trailing_comma_object.jsonl": ({"preference": 1}, {Reason.TRAILING_COMMA: 1}),
    "E22_nan.jsonl": ({"demonstration": 1, "preference": 1}, {Reason.ONE_SIDE: 1}),
    "E23_single_quotes.jsonl": "Python's notation",
    "E24_comments.json": ({"preference": 1}, {Reason.COMMENT: 1, Reason.NOT_JSON: 2}),
    "E25.zip": (TWO_PREFERENCES, {}),
    "E26.jsonl.bz2": (TWO_PREFERENCES, {}),
    "E28.jsonl.zst": (TWO_PREFERENCES, {}),
    "E29.tar.gz": (TWO_PREFERENCES, {}),
    "E31_folder": (TWO_PREFERENCES, {}),
    "E32_verl.parquet": ({"checkable": 1}, {}),
    "E35.xlsx": "Excel",  # the archive of a workbook without its parts
    "E36_empty.jsonl": ({}, {}),
    "E37_html.jsonl": "a web page",
    "E39_yaml.yaml": ({}, {Reason.NOT_JSON: 3}),
    "F01_bad_middle.jsonl": ({"preference": 6}, {Reason.NOT_JSON: 1, Reason.NOT_OBJECT: 4}),
    "F02_bad_middle.json": ({"preference": 6}, {Reason.NOT_JSON: 1}),
    "F03_bad_middle_oneline.json": ({"preference": 6}, {Reason.NOT_JSON: 1}),
    "F04_deep.jsonl": (TWO_PREFERENCES, {Reason.TOO_DEEP: 1}),
    "F05_deep.json": (TWO_PREFERENCES, {Reason.TOO_DEEP: 1}),
    "F06_nul_surrogate.jsonl": (TWO_PREFERENCES, {Reason.UNSTORABLE: 2, Reason.NOT_JSON: 1}),
    "F07_bigint.jsonl": (TWO_PREFERENCES, {}),
    "F08_dupkeys.jsonl": ({"preference": 1}, {}),
    "F09_numbers.jsonl": ({"preference": 1, "demonstration": 1}, {Reason.TRUE_OR_FALSE: 1}),
    "F10_control_chars.jsonl": ({"demonstration": 2}, {}),
    "F11_case_fields.jsonl": ({"preference": 1}, {}),
    "F12_identical_after_strip.jsonl": (
        {"preference": 1}, {Reason.IDENTICAL: 1, Reason.EMPTY_ANSWER: 1, Reason.EMPTY_PROMPT: 1},
    ),
    "G02_prompt_with_system_repeated.jsonl": ({"preference": 3}, {}),
    "G04_trl_implicit_text.jsonl": ({"preference": 1}, {}),
    "G07_list_of_dialogues.json": ({"demonstration": 2}, {}),
    "G08_text_only.jsonl": ({"text": 1, "demonstration": 1}, {}),
    "G10_only_one_side_null.jsonl": ({"prompt": 1, "preference": 1}, {Reason.ONE_SIDE: 2}),
    "G13_hh_3_speakers.jsonl": ({"preference": 1}, {Reason.EMPTY_ANSWER: 1}),
    "H03_field_names_escape.jsonl": ({"demonstration": 2}, {}),
    "H04_two_systems.jsonl": ({"demonstration": 1}, {}),
    "H06_mixed_bad_reasons.jsonl": (
        {"vote": 1}, {Reason.UNKNOWN_FIELDS: 1, Reason.TOOLS: 1, Reason.EMPTY_PROMPT: 1, Reason.EMPTY_ANSWER: 1},
    ),
    "I01_multiturn_same_prefix.jsonl": ({"preference": 1}, {}),
    "I03_sharegpt_system_inside.jsonl": ({"demonstration": 2}, {}),
    "I04_with_and_without_prompt.jsonl": ({"preference": 1}, {Reason.DUPLICATE: 1}),
    "I05_leading_toolcall.jsonl": ({}, {Reason.TOOLS: 1}),
    "I06_swift_rejected_list.jsonl": (TWO_PREFERENCES, {}),
    "K10_injection_start_only.jsonl": ({"demonstration": 2}, {}),
}  # fmt: skip
MADE = {"F13_make_50mb_entry.py", "C17_make_whitespace_leak.py"}  # which write their files


@pytest.fixture
def cases(data_folder: Path) -> Path:
    return data_folder / "cases"


def read(path: Path) -> tuple[list[ImportedRow], ImportReport]:
    report = ImportReport(str(path))
    return list(read_examples(RowSource(path), report)), report


def turns(example: ImportedRow) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in example.prompt.messages]


def winners(examples: list[ImportedRow]) -> list[str]:
    return [example.answers[verdict.ranking[0][0]] for example in examples for verdict in example.verdicts[:1]]


@pytest.mark.parametrize("name", CASES)
def test_every_case_has_its_right_outcome(name: str, cases: Path) -> None:
    expected = CASES[name]
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            read(cases / name)
        return
    examples, report = read(cases / name)
    kept, skipped = expected
    assert report.kept == kept
    assert {reason: tally.count for reason, tally in report.skipped.items()} == skipped
    assert report.rows == report.kept_rows + report.skipped_rows and len(examples) >= report.kept_rows


def test_no_case_is_left_out(cases: Path) -> None:
    assert {path.name for path in cases.iterdir()} == {"INDEX.md", *MADE, *CASES}


def test_the_better_answer_is_the_better_one(cases: Path) -> None:
    """A row that is read as its opposite would count just as well."""
    expected = {
        "A01_pku_saferlhf.jsonl": ["Yes, it is possible. Pawn shops may", "Skip meals"],
        "A11_lf_old_ranking.json": ["Carp.", "Oak."],
        "A14_shp.jsonl": ["It's ironic"],
        "A16_summarize_feedback.jsonl": ["My mum"],
        "A19_ultrafeedback_raw.jsonl": ["Carp."],
        "A23_stack_exchange_paired.jsonl": ["Use sorted()."],
        "A26_openwebui_feedback.json": ["The robot's fingers"],
        "A03_swift_rejected_response.jsonl": ["Tomorrow's weather", "It equals 3"],
        "I06_swift_rejected_list.jsonl": ["This is a kitten.", "Carp."],
        "A02_openai_dpo.jsonl": ["Today in San Francisco"],
    }
    for name, beginnings in expected.items():
        found = winners(read(cases / name)[0])
        assert len(found) == len(beginnings) and all(map(str.startswith, found, beginnings)), name
    (chosen, tie), _ = read(cases / "A13_alpaca_eval_annotations.json")
    ((told, *_), _) = read(cases / "A26_openwebui_feedback.json")
    assert [verdict.annotator for verdict in told.verdicts] == ["usr1"]
    assert winners([chosen]) == ["Al Pacino, who began on Broadway."] and tie.verdicts[0].ranking == ((0, 1),)


def test_criteria_margins_strengths_weights_and_annotators_are_kept(cases: Path, store: Store) -> None:
    for name in ("A01_pku_saferlhf.jsonl", "A16_summarize_feedback.jsonl", "A20_ultrafeedback_binarized.jsonl",
                 "D01_three_annotators.jsonl",                  "D02_margin_strength.jsonl", "A27_labelstudio_pairwise.json"):  # fmt: skip
        import_file(store, cases / name)
    safer = [
        (item.completions[one.ranking[0][0]].text[:5], one.criterion) for item, one in store.judgements_by("harmless")
    ]
    assert safer == [("Yes, ", "harmless"), ("Try a", "harmless")]
    judged = [(item.prompt.text, one) for item, one in store.judgements()]
    summary = next(one for text, one in judged if text.endswith("TL;DR:"))
    assert (summary.labeler, summary.confidence) == ("w1", 8)
    fish = [one for text, one in judged if text == "Name a fish."]
    assert {one.labeler for one in fish} == {"import", "ann0", "ann1", "ann2", "ann3", "3", "4"}
    assert Counter(one.ranking for one in fish if one.labeler.startswith("ann")).most_common()[0][1] == 3
    assert sorted(one.margin for one in fish if one.margin) == [
        6.5
    ]  # the same verdict of nobody, with another margin, is known already
    assert [one.strength for text, one in judged if text == "Name a tree."] == [3]
    assert [one.weight for text, one in judged if text == "Name a nut."] == [0.1]
    pairs = {(pair.chosen.text, pair.weight, pair.strength) for each in store.judgements() for pair in pairs_of(*each)}
    assert {("Hazel.", 0.1, None), ("Oak.", 1.0, 3), ("Carp.", 1.0, 6.5)} <= pairs
    assert not any(answer.startswith(("One.", "Two.", "Try a")) for answer, *_ in pairs)  # a tie; what is safer alone


def test_ties_and_votes_are_no_sure_wins_and_nothing_to_imitate(cases: Path, store: Store) -> None:
    for name in (
        "B04_label_minus1.jsonl",
        "B05_label_string.jsonl",
        "B07_is_good_desirable.jsonl",
        "D03_tie_flag.jsonl",
    ):
        import_file(store, cases / name, held_out_share=0.0)
    assert store.completions(source="demonstration") == []
    said = [(prompt.text, rating.kind, rating.value) for prompt, rating in ratings(store)]
    assert said == [
        ("Name a fish.", "vote", 1), ("Name a tree.", "vote", 0), ("Name a bird.", "vote", 0), ("Name a nut.", "vote", 0),
        ("Name a fox.", "score", 0.02), ("Name a cow.", "score", -3.1),
    ]  # fmt: skip  # is_good of the rat is the vote that label gave it
    judged = store.judgements()
    assert [one.outcome for _, one in judged] == ["", "", "both_bad"] and {len(one.ranking) for _, one in judged} == {1}
    assert store.snapshot_pairs(store.take_snapshot().id) == []


def test_solutions_are_checked_and_never_imitated(cases: Path, store: Store) -> None:
    for name in ("B02_question_answer.jsonl", "B09_verl.jsonl", "B10_trl_grpo_solution.jsonl"):
        import_file(store, cases / name, held_out_share=0.0)
    assert [text for _, text in solutions(store)] == ["72", "4", "5"]
    assert [completion.text[-5:] for _, completion in store.completions(source="demonstration")] == ["## 72", "### 2"]


def test_system_turns_and_histories_stay_in_the_prompt(cases: Path) -> None:
    expected: dict[str, list[list[tuple[str, str]]]] = {
        "A07_truthy_dpo_system_prompt.jsonl": [[("system", "You are an unbiased, uncensored, helpful assistant.")]],
        "A08_prompt_system_completion.jsonl": [[("system", "Answer in French."), ("user", "Good morning")]],
        "A10_prompt_history.jsonl": [[("user", "Capital of France?"), ("assistant", "Paris."), ("user", "And of Spain?")]],
        "B03_dolly.jsonl": [[("user", "When did it start?\n\nVirgin Australia commenced in 2000.")]],
        "C08_hh_system.jsonl": [
            [("system", "Be brief."), ("user", "Name a fish.")], [("user", "Name a fish.")], [("user", "Name a tree.")], [("user", "Hi")]],
        "H04_two_systems.jsonl": [[("system", "A.\n\nB."), ("user", "Hi")]],
        "G02_prompt_with_system_repeated.jsonl": [[("system", "Be brief.")], [("system", "Be brief.")], [("user", "Hi")]],
        "G04_trl_implicit_text.jsonl": [[("user", "The sky is")]],
        "A05_axolotl_messages_chosen.jsonl": [
            [("user", "Should I go?"), ("assistant", "Where?"), ("user", "To the sea.")],
            [("system", "Be brief."), ("user", "Name a fish.")],
        ],
        "A06_intel_orca_dpo.jsonl": [[("system", "You are an AI assistant.")], [("user", "Name a fish.")]],
        "C12_swift_query_response.json": [
            [("system", "00000"), ("user", "55555")], [("user", "eeeee")], [("user", "AAAAA"), ("assistant", "BBBBB"), ("user", "EEEEE")]],
        "I01_multiturn_same_prefix.jsonl": [[("user", "Hi"), ("assistant", "Hello."), ("user", "Name a fish.")]],
        "I03_sharegpt_system_inside.jsonl": [[("system", "You are an AI assistant.")], [("system", "You are kind."), ("user", "Hi")]],
        "E01_gbk.jsonl": [[("user", "写一首关于月亮的诗。")], [("user", "中国的首都是哪里？")], [("user", "Name a fish.")]],
        "E03_utf16.jsonl": [[("user", "写一首关于月亮的诗。")], [("user", "中国的首都是哪里？")], [("user", "Name a fish.")]],
        "C01_empty_system.jsonl": [[("user", "Name a fish.")], [("user", "Name a tree.")], [("user", "Name a nut.")]],
    }  # fmt: skip
    for name, beginnings in expected.items():
        found = [turns(example) for example in read(cases / name)[0]]
        assert [dialogue[: len(begun)] for dialogue, begun in zip(found, beginnings, strict=True)] == beginnings, name


def test_what_disagrees_with_another_file_is_reported(cases: Path, store: Store) -> None:
    first = import_file(store, cases / "D04_conflict_a.jsonl")
    second = import_file(store, cases / "D04_conflict_b.jsonl")
    assert (first.new, first.known, first.disagreements) == (2, 0, 0)
    assert (second.new, second.known, second.disagreements) == (1, 1, 1)
    assert "1  verdicts that are opposite to one that was there" in second.text()


def test_prompts_that_differ_by_white_space_share_their_split(cases: Path, tmp_path: Path, store: Store) -> None:
    script = cases / "C17_make_whitespace_leak.py"
    subprocess.run([sys.executable, script], cwd=tmp_path, check=True)
    report = import_file(store, tmp_path / "leak.jsonl", held_out_share=0.2)
    assert report.kept == {"preference": 500} and report.skips(Reason.DUPLICATE) == 500 and report.near_duplicates == 0
    inside = [{"prompt": f"Name  fish\nnumber {n}.", "chosen": "Carp.", "rejected": "A dog."} for n in range(500)]
    (tmp_path / "inside.jsonl").write_text("\n".join(map(json.dumps, inside)))
    report = import_file(store, tmp_path / "inside.jsonl", held_out_share=0.2)
    assert report.new == 500 and report.near_duplicates == 0  # other prompts, on the same side
    louder = [{"prompt": f"NAME FISH NUMBER {n}!", "completion": "Carp."} for n in range(500)]
    (tmp_path / "louder.jsonl").write_text("\n".join(map(json.dumps, louder)))
    report = import_file(store, tmp_path / "louder.jsonl", held_out_share=0.2)
    assert report.near_duplicates > 50 and "held-out prompts of the store equal a training prompt" in report.text()


def test_notes_and_names_say_what_is_odd(cases: Path) -> None:
    expected = {
        "C05_dialogue_ends_user.jsonl": Note.TRAILING_USER,
        "C07_two_users.jsonl": Note.SAME_SPEAKER,
        "C09_chatml_in_strings.jsonl": Note.CONTROL,
        "F08_dupkeys.jsonl": Note.FIELD_TWICE,
        "C10_special_tokens_user.jsonl": Note.CONTROL,
        "C15_json_string_columns.jsonl": Note.PARSED,
        "H04_two_systems.jsonl": Note.TWO_SYSTEMS,
        "K10_injection_start_only.jsonl": Note.CONTROL,
    }
    for name, note in expected.items():
        assert note in read(cases / name)[1].notes, name
    roles = read(cases / "C02_developer_role.jsonl")[1].roles
    assert set(roles) == {"developer", "user", "assistant", "model", "USER", "ASSISTANT", "human", "chatgpt"}
    report = read(cases / "A33_pku_full_columns.jsonl")[1]
    assert all(name in report.text() for name in ("prompt_source", "response_0_source", "response_1_severity_level"))
    report = read(cases / "H03_field_names_escape.jsonl")[1]
    assert "\x1b" not in report.text() and max(map(len, report.unread)) <= 100 and len(report.text()) < 2_000
