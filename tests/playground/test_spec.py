import ast
import re
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from bridle.core.errors import BridleError, DataError, RecipeError
from bridle.playground.gold import Gold
from bridle.playground.spec import DEFAULT_WORLD, load_spec
from bridle.playground.world import World


def changed(tmp_path: Path, place: str, value: object) -> Path:
    """The default world with one key (dotted) set to `value`, or taken out where it is None."""
    data = tomllib.loads(DEFAULT_WORLD.read_text(encoding="utf-8"))
    section: Any = data
    *parents, key = place.split(".")
    for parent in parents:
        section = section[int(parent) if parent.isdigit() else parent]
    if value is None:
        del section[key]
    else:
        section[key] = value
    path = tmp_path / "world.toml"
    path.write_text(tomli_w.dumps(data), encoding="utf-8")
    return path


@pytest.mark.slow  # by the clock
def test_the_default_world_loads_fast() -> None:
    start = time.perf_counter()
    World.load()
    assert time.perf_counter() - start < 0.5


def test_a_missing_file_is_a_recipe_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nowhere.toml cannot be read"):
        load_spec(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("text", [b"names = [", b"\xff\xfe"])
def test_bad_toml_is_a_data_error(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "world.toml"
    path.write_bytes(text)
    with pytest.raises(DataError, match="is not valid TOML"):
        load_spec(path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("joke", None, "it lacks joke"),
        ("poem.asks", None, r"it lacks poem\.asks"),
        ("families.math", None, "family 'math' is missing"),
        ("authors.bad", None, "author 'bad' is missing"),
        ("authors.bad.plans.honest", None, "family 'honest' is missing"),
        ("border", {}, "border is wrong"),
        ("border.whip the {thing}.things", [], "things is wrong"),
        ("border.whip the {thing}.gerund", "whipping it", "the slots in braces of 'whipping it' must be {thing}"),
        ("border.whip the {thing}.remedies", ["cool the {act}"], "the slots in braces"),
        ("rubric.no_answer", None, "'no_answer' is missing or unknown"),
        ("joke.animals", [], r"joke\.animals is wrong"),
        ("phrases.rude", [""], r"phrases\.rude\.0 is wrong"),
        ("poem.contxts", ["Hello."], "did you mean 'contexts'"),
        ("authors.good.slip", 1.5, "less than or equal to 1"),
        ("families.help.weight", float("nan"), "finite"),
        ("families.help.demonstrations", [0, 0, 0], "above 0"),
        ("authors.mid.plans.joke", {"setup": 0}, "above 0"),
        ("honest.fact", "{name} has a {thing}.", "the slots in braces of .* must be"),
        ("joke.asks", ["Why the {animal}?", "Why?"], "the slots in braces of 'Why\\?' must be {animal}"),
        ("help.problems.0.class", "galaxy", "unknown class 'galaxy'"),
        ("math.problems.boxes.steps", ["held = a * z", "all = held + c"], "'z' is used before it is known"),
        ("math.problems.boxes.steps", ["a lot", "of it"], "an equation looks like"),
        ("math.problems.boxes.short", ["Only {step}."], "2 steps need"),
        ("math.problems.boxes.text", "How many {zs}?", "unknown slot 'zs'"),
        ("math.problems.boxes.draw.a", [5, 2], "ends before it starts"),
        ("honest.facts", [10], "at least one thing more"),
    ],
)
def test_what_is_no_world_is_said_in_one_sentence(tmp_path: Path, place: str, value: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_spec(changed(tmp_path, place, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("authors.good.plans.joke", {"setup punchlin": 1}, "unknown move 'punchlin'"),
        ("phrases.vague", ["I do not know."], "twice, as vague and as unknown"),
        ("phrases.closers", ["Bye. Bye."], "is not one sentence"),
        ("phrases.closers", ["Bye"], "is not one sentence"),
        ("border.crack a {thing}.remedies", ["use a long lens"], "remedy 'use a long lens' twice"),
        ("phrases.closers", ["Ask Anna: she knows."], "closer 'Ask Anna: she knows.' holds 'Anna:'"),
        ("border.crack a {thing}.remedies", ["ask Anna: she knows"], "holds 'Anna:'"),
    ],
)
def test_a_world_that_gold_could_not_read_is_refused(tmp_path: Path, place: str, value: object, message: str) -> None:
    with pytest.raises(BridleError, match=message):
        Gold(World.load(changed(tmp_path, place, value)))


def test_the_code_names_no_word_of_the_default_world() -> None:
    data = tomllib.loads(DEFAULT_WORLD.read_text(encoding="utf-8"))
    lists = [
        data["names"],
        data["joke"]["animals"],
        data["joke"]["places"],
        data["math"]["things"],
        data["honest"]["things"],
    ]
    lists += [data["honest"]["attributes"], *data["help"]["classes"].values()]
    lists += [kind["things"] for kind in data["border"].values()]
    lists += [list(data["help"]["classes"]), list(data["harm"]["categories"]), list(data["math"]["problems"])]
    words = {word.lower() for words in lists for word in words}
    for file in DEFAULT_WORLD.parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
                assert not words & set(re.findall(r"[a-z]+", node.value.lower())), f"{file.name}: {node.value!r}"


@pytest.mark.parametrize("text", ["names = " + "[" * 100_000, "names = " + "1" * 5000])
def test_a_world_that_cannot_be_read_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "world.toml").write_text(text)
    with pytest.raises(DataError, match="is not valid TOML .*(nest too deep|too many digits).*; mend it there"):
        load_spec(tmp_path / "world.toml")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("documents.equations", 10**10, "documents.equations is wrong"),
        ("documents.equations", -1, "documents.equations is wrong"),
        ("documents.equations", 3.0, "documents.equations is wrong"),
        ("documents.equations", True, "documents.equations is wrong"),
        ("documents.answers", [10**9], r"documents.answers.0 is wrong"),
        ("documents.table.+", [[5, 1], [1, 2]], "ends before it starts"),
        ("documents.table.+", [[0, 10**30], [1, 2]], r"documents.table.\+.0.1 is wrong"),
        ("honest.facts", ["3"], "honest.facts.0 is wrong"),
        ("families.help.weight", float("nan"), "families.help.weight is wrong"),
        ("families.help.weight", 1e308, "families.help.weight is wrong"),
        ("labelers.0.skill", float("nan"), "labelers.0.skill is wrong"),
        ("labelers.0.side_bias", float("inf"), "labelers.0.side_bias is wrong"),
        ("rubric.most", 1e300, "rubric.most is wrong"),
        ("honest.fact", "{name} {attribute} {thing:>1000000000000}", "must stand in its braces alone"),
        ("honest.fact", "{name!r} {attribute} {thing}", "must stand in its braces alone"),
        ("names", ["a" * 10**6, "b"], "names.0 is wrong"),
        ("a" * 10**5, 1, "unknown key aaa"),
    ],
)
def test_a_number_that_no_world_needs_is_refused(place: str, value: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_spec(changed(tmp_path, place, value))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("equations", "message"),
    [
        (
            ["a2 = 999 * 999", "a3 = a2 * a2", "a4 = a3 * a3"],
            "'a4' may become larger than 1000000000000; draw smaller numbers",
        ),
        (["a2 = ² + 1"], "'²' is used before it is known"),
        ([f"a2 = {'9' * 5000} + 1"], "is used before it is known"),
    ],
)
def test_arithmetic_stays_small(equations: list[str], message: str, tmp_path: Path) -> None:
    """Each step may square what was: a result of thousands of digits could not even be written."""
    problems = tomllib.loads(DEFAULT_WORLD.read_text(encoding="utf-8"))["math"]["problems"]
    problem = next(iter(problems))
    given = [*problems[problem]["given"], *equations]
    with pytest.raises(DataError, match=message):
        load_spec(changed(tmp_path, f"math.problems.{problem}.given", given))
