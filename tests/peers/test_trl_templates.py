"""The chat templates that TRL ships, each beside transformers: prompt and answer are the ids of the whole dialogue, or it is refused.

They are read from TRL's wheel, of the version that `make bench-setup` installs: from .venv-trl where that is there, else downloaded.
"""

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bridle.core.errors import ModelError
from bridle.core.records import Message, Prompt
from bridle.models.encoding import DROPPED, REFUSED, REWRITTEN, encode_demonstrations
from bridle.models.files.chat_template import TemplateSettings
from bridle.models.template import Template, with_stops
from tests.models.families import byte_level, transformers_ids

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
REQUIRED = re.search(r"^trl==\S+", (ROOT / "benchmarks" / "requirements-trl.txt").read_text(), re.M)
FOLDER = "trl/chat_templates/"

SYSTEM_TURN, ASKED = Message("system", "Be brief."), Message("user", "Tell me a joke.")
TOLD, MORE = Message("assistant", "The rain fell."), Message("user", "Another!")
DIALOGUES = {
    "one turn": (ASKED,), "a system turn": (SYSTEM_TURN, ASKED), "turns": (ASKED, TOLD, MORE), "both": (SYSTEM_TURN, ASKED, TOLD, MORE),
}  # fmt: skip
ANSWERS = ["It had a bad day.", "  two\n\nlines  ", "1 < 2 & é🙂"]
THOUGHT = "<think>\nThe cat?\n</think>\n\nThe cat."

# Contents in parts, as models of images take them: transformers leaves out the text, or fails.
IN_PARTS = {
    **dict.fromkeys(["idefics3", "idefics3_training", "smolvlm", "smolvlm_training"], "leaves out the text of the answer 'yes'"),
    **dict.fromkeys(["llava_next", "llava_next_training"], "could not render 2 messages (4 characters): 'str object' has no attribute"),
}  # fmt: skip
NO_SYSTEM = {"gemma", "gemma_training"}
NO_END = {"glm4moe"}  # the next turn's first token ends one
# The thought of the last answer, too: an answer with one would be trained without it.
THOUGHTS = {
    **dict.fromkeys(["deepseek_r1_distill", "deepseekv3", "deepseekv3_training"], {DROPPED: 1}),
    # Their cue says that there is none, and an answer with one takes that back; with enable_thinking = true they are as the others.
    **dict.fromkeys(["qwen3_5_nothink", "qwen3_5_nothink_training"], {REWRITTEN: 1}),
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each template by its name, from the wheel of the version that the benchmarks compare with."""
    assert REQUIRED
    installed = ROOT / ".venv-trl" / "lib"
    if found := sorted(installed.glob(f"python*/site-packages/{FOLDER}*.jinja")):
        return {path.stem: path.read_text("utf-8") for path in found}
    place = tmp_path_factory.mktemp("trl")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(place), REQUIRED[0]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no wheel of {REQUIRED[0]} can be had: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(next(place.glob("trl-*.whl"))) as wheel:
        names = [name for name in wheel.namelist() if name.startswith(FOLDER) and name.endswith(".jinja")]
        return {Path(name).stem: wheel.read(name).decode() for name in names}


def loaded(source: str) -> Template:
    """The template with a tokenizer that has every control token that it spells."""
    spelt = set(re.findall(r"<[|｜]?[A-Za-z_|▁｜]+[|｜]?>|\[[A-Za-z_]+\]", source))
    tags = {token for token in spelt if re.fullmatch(r"<(think|br|tool\w*)>|</.*", token)}
    tokenizer = byte_level(["<s>", "</s>", *sorted(spelt - tags - {"<s>", "</s>"})], ["<think>", "</think>"])
    return with_stops(Template(tokenizer, source, "<s>", "</s>", "", frozenset({tokenizer.token_to_id("</s>")})))


def usable(sources: dict[str, str]) -> Iterator[tuple[str, Template]]:
    for name in sorted(sources.keys() - IN_PARTS.keys()):
        yield name, loaded(sources[name])


def assert_as_transformers(name: str, template: Template, prompt: Prompt, answer: str) -> None:
    """The row is what transformers makes of the whole, up to the end of the answer's turn, and nothing of it comes after that."""
    [(before, after)], report = encode_demonstrations(template, [(prompt, answer)], 4096)
    messages = template.written(prompt.messages)
    whole = transformers_ids(template, [*messages, Message("assistant", answer)])
    whole += [template.turn_end.token] if name in NO_END else []
    assert [*before, *after] == whole[: len(before) + len(after)], (name, prompt.messages, answer, report.noted)
    assert after[-1] in template.stop_ids, (name, answer)
    rest = template.tokenizer.decode(whole[len(before) + len(after) :])
    assert not rest.strip(), (name, rest)
    cue = transformers_ids(template, messages, add_generation_prompt=True)
    assert template.prompt_ids([prompt]) == [cue], (name, prompt.messages)


def test_there_are_over_thirty_of_them(sources: dict[str, str]) -> None:
    assert len(sources) > 30 and sources.keys() >= {*IN_PARTS, *NO_SYSTEM, *NO_END, *THOUGHTS}


def test_those_that_take_contents_in_parts_are_refused(sources: dict[str, str]) -> None:
    for name, reason in IN_PARTS.items():
        with pytest.raises(ModelError, match=re.escape(reason)):
            loaded(sources[name])


def test_prompt_and_answer_are_the_ids_of_the_whole(sources: dict[str, str]) -> None:
    for name, plain in usable(sources):
        for messages in DIALOGUES.values():
            template = plain
            if name in NO_SYSTEM and messages[0].role == "system":
                _, report = encode_demonstrations(template, [(Prompt(messages), ANSWERS[0])], 4096)
                assert report.dropped == {REFUSED: 1}, name
                template = replace(template, settings=TemplateSettings(fold_system=True))
            for answer in ANSWERS:
                assert_as_transformers(name, template, Prompt(messages), answer)


def test_thoughts_are_the_templates_own_or_the_row_is_refused(sources: dict[str, str]) -> None:
    """Those of earlier answers are the template's to drop; that of the last one is trained, or refused."""
    earlier = (ASKED, Message("assistant", THOUGHT), MORE)
    for name, template in usable(sources):
        _, report = encode_demonstrations(template, [(Prompt((ASKED,)), THOUGHT)], 4096)
        assert report.dropped == THOUGHTS.get(name, {}), name
        if name not in THOUGHTS:
            assert_as_transformers(name, template, Prompt((ASKED,)), THOUGHT)
            assert_as_transformers(name, template, Prompt(earlier), THOUGHT)
        assert_as_transformers(name, template, Prompt(earlier), ANSWERS[0])
