"""docs/versions.md says of this version what is so: its number, what it runs on, and the forms of what it writes and reads."""

import re
import tomllib

import bridle
from bridle.compute.checkpoint import EARLIER_FORM, FORM
from bridle.feedback.exporting.whole import FORMAT
from bridle.models.contents import RULE
from bridle.rewards.judge.judge import VERSION
from tests.house.source import ROOT

PAGE = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))


def test_there_is_one_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest and newest[1] == PROJECT["version"] == bridle.__version__
    assert f"This one is {bridle.__version__}," in PAGE


def test_the_page_says_what_it_runs_on() -> None:
    assert PROJECT["requires-python"] == ">=3.11,<3.14" and "| Python | 3.11, 3.12, 3.13 |" in PAGE
    assert {"torch>=2.11", "transformers>=5.0,<6"} <= set(PROJECT["dependencies"])
    assert f"| PyTorch | 2.11 or later | {PINNED['torch']} |" in PAGE
    assert f"| transformers | 5.0 or later, below 6 | {PINNED['transformers']} |" in PAGE


def test_the_page_says_which_forms_are_written_and_read() -> None:
    scripts = (ROOT / "bridle" / "feedback" / "store" / "migrations" / "versions").glob("v[0-9]*.py")
    assert f"| schema {max(path.name[1:5] for path in scripts)} |" in PAGE
    assert f"| form {FORM} | form {EARLIER_FORM} is read;" in PAGE
    assert f"| a model's content hash | `{RULE}…` |" in PAGE
    assert f"| a full export | format {FORMAT} |" in PAGE and f"| a judge's verdicts | version {VERSION} |" in PAGE


def test_no_setting_has_an_alias() -> None:
    """As the page says. Where one gets an alias, the page has to say how long it is read."""
    aliased = [path for path in (ROOT / "bridle" / "recipe").glob("*.py") if "alias" in path.read_text("utf-8")]
    assert not aliased and "there is no alias of a setting" in PAGE
