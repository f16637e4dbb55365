"""The recipe: settings that are known, typed, frozen, and the same after every way out and in."""

import json
import os
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from bridle.core.errors import RecipeError
from bridle.recipe.data import PLAYGROUND_SIZES
from bridle.recipe.documents import reference, starter, to_toml
from bridle.recipe.recipe import (
    ADDED_LATER,
    NAMES_OF_MODELS,
    WITHOUT_EFFECT,
    Recipe,
    load_recipe,
    parse,
    parse_setting,
    recipe_as_written,
    sections,
)

EARLIER = json.loads(
    Path(__file__).with_name("earlier.json").read_text("utf-8")
)  # what stood before `start`, `simpo`, …
DOCS = Path(__file__).parents[2] / "docs" / "recipe.md"
CHANGED = Recipe().with_settings({"seed": 7, "ppo.kl_coef": 0.25, "model.path": 'a "b" \\ c', "reward.slim": False})


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"ppo": {"kl_coeff": 0.1}}, "unknown setting 'ppo.kl_coeff'; did you mean 'kl_coef'?"),
        ({"pppo": {}}, "unknown setting 'pppo'; did you mean 'ppo'?"),
        ({"sampling": {"zzz": 1}}, "unknown setting 'sampling.zzz'; known: answers, temperature, top_p"),
        ({"zzzzzz": 1}, "unknown setting 'zzzzzz'; known: seed, world"),
    ],
)
def test_an_unknown_key_names_the_nearest(raw: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(raw, "bridle.toml")
    assert str(caught.value).startswith("bridle.toml: ") and words in str(caught.value)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ppo.steps", "12"),
        ("ppo.steps", 1.5),
        ("ppo.steps", 14.0),
        ("ppo.steps", True),
        ("ppo.steps", 0),
        ("ppo.clip", "0.2"),
        ("ppo.learning_rate", float("inf")),
        ("ppo.learning_rate", float("nan")),
        ("ppo.gamma", 1.1),
        ("reward.slim", 1),
        ("reward.slim", "true"),
        ("sft.optimizer", "adam"),
        ("model.path", 3),
        ("ppo", 3),
        ("seed", -1),
        ("seed", [1]),
    ],
)
def test_a_wrong_value_is_refused_and_never_rewritten(key: str, value: object) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe().with_settings({key: value})
    assert f"--set: {key} = {value!r} is invalid: must " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_says_where_the_value_came_from(tmp_path: Path) -> None:
    for settings, words in (
        ({"ppo.kl_coef": -1}, "ppo: ppo.kl_coef = -1 is invalid: must be greater than or equal to 0"),
        ({"ppo.klcoef": 1}, "ppo: unknown setting 'ppo.klcoef'; did you mean 'kl_coef'?"),
        ({"pppo.kl": 1}, "ppo: unknown section 'pppo' in 'pppo.kl'; did you mean 'ppo'?"),
        ({"reward_source.weight": 1}, "ppo: reward_source is a list; give all of it"),
        ({"reward_source": [{"name": "a"}]}, "ppo: reward_source.0.kind is missing, and it has no default"),
        (
            {"reward_source": [{"name": "a b", "kind": "learned"}]},
            "ppo: reward_source.0.name = 'a b' is invalid: must match",
        ),
        ({"ppo": 3}, "ppo: ppo = 3 is invalid: must be a section of settings"),
    ):
        with pytest.raises(RecipeError) as caught:
            Recipe().with_settings(settings, source="ppo")
        assert str(caught.value).startswith(words), caught.value


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ppo.kl_coef": 0.0}, "[ppo] is invalid: kl_target = 1.5 steers β by products, which cannot move kl_coef = 0"),
        ({"ppo.kl_gain": 0.0}, "with kl_gain = 0; set kl_target = 0 to leave β fixed"),
        ({"ppo.early_stop_kl": 0.1, "ppo.epochs": 1, "ppo.minibatches": 1}, "early_stop_kl = 0.1 can stop nothing"),
        ({"rejection.threshold": 0.8}, "threshold = 0.8 has no effect on keep = 'best'"),
        ({"reward.style_control": ["length"], "reward.tasks": ["toxic"]}, "has no 'reward'; add it"),
        ({"reward.combine": "min"}, "combine = 'min' needs an ensemble, and members is 1"),
        ({"reward.bootstrap": True}, "bootstrap = true needs an ensemble, and members is 1"),
    ],
)
def test_a_setting_that_another_makes_useless_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe().with_settings(settings)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"ppo.kl_coef": 0.0, "ppo.kl_target": 0.0},  # the unbridled run
        {"ppo.kl_gain": 0.0, "ppo.kl_target": 0.0},
        {"ppo.early_stop_kl": 0.1, "ppo.epochs": 1, "ppo.minibatches": 2},
        {"rejection.threshold": 0.8, "rejection.keep": "shortest"},
        {"reward.combine": "min", "reward.members": 2},
    ],
)
def test_what_goes_together_is_taken(settings: dict[str, object]) -> None:
    Recipe().with_settings(settings)


def test_whole_numbers_do_for_shares() -> None:
    assert Recipe().with_settings({"ppo.gamma": 1}).ppo.gamma == 1.0


def test_several_faults_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        parse({"ppo": {"steps": 0}, "sft": {"epochz": 1}}, "x")
    assert "ppo.steps" in str(caught.value) and "sft.epochz" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("ppo.steps=3", ("ppo.steps", 3)),
        ("ppo.kl_coef = 0.2", ("ppo.kl_coef", 0.2)),
        ("ppo.learning_rate=1e-4", ("ppo.learning_rate", 1e-4)),
        ("reward.slim=false", ("reward.slim", False)),
        ('model.path="3"', ("model.path", "3")),
        ("model.path=models/base", ("model.path", "models/base")),
        ("model.path=a=b", ("model.path", "a=b")),
        ("model.path=", ("model.path", "")),
        ("x=[1, 2]", ("x", [1, 2])),
        ("x=['a', \"b\"]", ("x", ["a", "b"])),
    ],
)
def test_set_reads_a_value_as_toml_or_as_text(text: str, pair: tuple[str, object]) -> None:
    found = parse_setting(text)
    assert found == pair and type(found[1]) is type(pair[1])


@pytest.mark.parametrize("text", ["ppo.steps", "=3", " = 3", ""])
def test_set_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"--set takes section\.key=value, got"):
        parse_setting(text)


def test_set_with_an_unknown_section_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="unknown section 'rewad' in 'rewad.epochs'; did you mean 'reward'?"):
        Recipe().with_settings({"rewad.epochs": 1})
    with pytest.raises(RecipeError, match="unknown section 'steps' in 'ppo.steps.more'"):
        Recipe().with_settings({"ppo.steps.more": 1})


def test_settings_are_frozen() -> None:
    recipe = Recipe()
    with pytest.raises(ValidationError, match="frozen"):
        recipe.ppo.steps = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]


def test_a_changed_copy_leaves_the_first_alone() -> None:
    recipe = Recipe()
    assert recipe.with_settings({"ppo.steps": 3}).ppo.steps == 3
    assert recipe == Recipe()


@pytest.mark.parametrize("recipe", [Recipe(), CHANGED], ids=["defaults", "changed"])
def test_toml_comes_back(recipe: Recipe, tmp_path: Path) -> None:
    for text in (to_toml(recipe), starter(recipe)):
        (tmp_path / "bridle.toml").write_text(text, "utf-8")
        assert load_recipe(tmp_path / "bridle.toml") == recipe


def test_the_starter_explains_every_setting() -> None:
    text = starter(Recipe())
    assert set(tomllib.loads(text)) == {"seed", *sections()}
    for section in sections().values():
        for key, field in section.model_fields.items():
            meaning = " ".join((field.description or "").split())
            assert meaning
            assert [line for line in text.splitlines() if line.startswith(f"{key} = ") and meaning in line]


@pytest.mark.parametrize(("text", "words"), [("seed = ", "is not valid TOML"), ("seed = 'x'", "seed = 'x' is invalid")])
def test_a_file_that_will_not_do_is_named(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "bridle.toml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "bridle.toml")
    assert str(tmp_path / "bridle.toml") in str(caught.value) and words in str(caught.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe at .*; `bridle init DIR` makes"):
        load_recipe(tmp_path / "bridle.toml")
    (tmp_path / "bridle.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="is not valid TOML"):
        load_recipe(tmp_path / "bridle.toml")


def test_the_hash_of_a_stage_knows_its_sections_and_the_seed_alone() -> None:
    recipe = Recipe()
    base = recipe.hash_of("sft", "model")
    assert recipe.with_settings({"ppo.steps": 3, "reward.slim": False}).hash_of("sft", "model") == base
    assert recipe.hash_of("model", "sft") == base
    changed = [{"sft.epochs": 3}, {"model.layers": 3}, {"seed": 1}]
    assert len({base, *(recipe.with_settings(c).hash_of("sft", "model") for c in changed)}) == 4
    assert recipe.hash_of("sft") != base


def test_every_trainer_has_what_all_trainers_have() -> None:
    shared = {"batch_size", "learning_rate", "optimizer", "clip_norm", "checkpoint_every"}
    for name in ("pretrain", "sft", "reward", "ppo"):
        assert shared < set(sections()[name].model_fields)
    assert Recipe().ppo.batch_size == 32 and Recipe().sft.batch_size == 16 and Recipe().ppo.checkpoint_every == 5


def test_every_section_is_closed_frozen_and_told() -> None:
    for section in (Recipe, *sections().values()):
        assert issubclass(section, BaseModel) and section.__doc__
        assert section.model_config["extra"] == "forbid"
        assert section.model_config["frozen"] and section.model_config["strict"]


def test_the_documentation_is_what_the_code_says() -> None:
    text = reference()
    if os.environ.get("BRIDLE_UPDATE_GOLDEN"):
        DOCS.write_text(text, "utf-8")
    assert DOCS.read_text("utf-8") == text, "run `make docs`: docs/recipe.md is written from bridle/recipe"
    for name, section in sections().items():
        assert f"## [{name}]" in text
        assert all(f"| `{name}.{key}` | " in text for key in section.model_fields)


def test_settings_that_do_not_go_together_are_told_as_such() -> None:
    with pytest.raises(RecipeError, match=r"\[dpo\] is invalid: label_smoothing belongs to loss = 'dpo'"):
        Recipe().with_settings({"dpo.loss": "ipo", "dpo.label_smoothing": 0.1})
    with pytest.raises(RecipeError, match="label_smoothing belongs to loss = 'dpo'; simpo has none, set it to 0"):
        Recipe().with_settings({"dpo.loss": "simpo", "dpo.label_smoothing": 0.1})
    with pytest.raises(
        RecipeError, match=r"\[dpo\] is invalid: gamma belongs to loss = 'simpo'; dpo has none, leave it at 0.5"
    ):
        Recipe().with_settings({"dpo.gamma": 1.0})


@pytest.mark.parametrize("settings", [{"dpo.reference": "base"}, {"dpo.online_reference": "round"}])
def test_simpo_has_no_reference(settings: dict[str, str]) -> None:
    Recipe().with_settings(settings)
    with pytest.raises(RecipeError) as caught:
        Recipe().with_settings({"dpo.loss": "simpo", "dpo.beta": 2.0, "dpo.gamma": 1.0, **settings})
    assert "[dpo] is invalid: loss = 'simpo' has no reference; set reference = ''" in str(caught.value)


def test_what_kto_and_orpo_cannot_be_set_to_is_said() -> None:
    for settings, words in (
        (
            {"orpo.reference": "sft"},
            "--set: [orpo] is invalid: ORPO has no reference; leave reference out, or train by dpo or kto",
        ),
        (
            {"kto.batch_size": 1},
            "--set: [kto] is invalid: batch_size = 1 leaves KTO's reference point, a mean over the batch, to one prompt",
        ),
        (
            {"kto.undesirable_weight": "even"},
            "kto.undesirable_weight = 'even' is invalid: must be a valid number, or auto",
        ),
        ({"kto.undesirable_weight": 0.0}, "kto.undesirable_weight = 0.0 is invalid: must be greater than 0, or auto"),
        ({"kto.labels": "scores"}, "kto.labels = 'scores' is invalid: must be 'all', 'comparisons' or 'votes'"),
        ({"orpo.loss": "orpo"}, "unknown setting 'orpo.loss'"),
    ):
        with pytest.raises(RecipeError) as caught:
            Recipe().with_settings(settings)
        assert words in str(caught.value)
    assert Recipe().with_settings({"kto.undesirable_weight": 1.33}).kto.undesirable_weight == 1.33
    dumped = Recipe().model_dump(mode="json")
    assert "loss" not in dumped["kto"] and "loss" not in dumped["orpo"], "by which code knows them, and not a setting"


def test_defaults_are_those_of_earlier_versions_in_their_order() -> None:
    dumped = Recipe().model_dump(mode="json")
    came_later = ("label", "judge", "constitution", "serve", "loop", "scale", "kto", "orpo", "lora", "track", "rollout")
    assert [name for name in dumped if name not in came_later] == list(EARLIER["dump"])
    for name, section in EARLIER["dump"].items():
        if name == "data":  # 0 stands for all that was imported; the playground's numbers are what they were
            assert {key: section[key] for key in PLAYGROUND_SIZES} == PLAYGROUND_SIZES
            section = section | dict.fromkeys(PLAYGROUND_SIZES, 0)
        if isinstance(section, dict):
            new = {*NAMES_OF_MODELS, *WITHOUT_EFFECT, *ADDED_LATER.get(name, ())}
            assert [key for key in dumped[name] if key not in new] == list(section), name
            assert all(type(dumped[name][key]) is type(value) for key, value in section.items()), name
            assert {**dumped[name], **section} == dumped[name], name
        else:
            assert dumped[name] == section


def test_the_keys_of_earlier_runs_stay() -> None:
    recipe = parse(EARLIER["dump"], "as an earlier `bridle init` wrote it")
    for names, expected in EARLIER["hashes"].items():
        assert recipe.hash_of(*names.split()) == expected, names
        assert "data" in names.split() or Recipe().hash_of(*names.split()) == expected, names
    changed = recipe.with_settings(EARLIER["changed"])
    assert changed.hash_of("model", "ppo", "dpo", "data", "sampling") == EARLIER["changed_hash"]


def test_the_playground_makes_as_many_as_it_always_made_and_a_store_uses_all() -> None:
    recipe = Recipe().with_settings({"data.source": "playground"})
    earlier = parse({**EARLIER["dump"], "data": {**EARLIER["dump"]["data"], "source": "playground"}}, "bridle.toml")
    assert recipe == earlier and recipe.hash_of("data") == earlier.hash_of("data")
    assert parse(tomllib.loads(starter(recipe)), "bridle.toml") == recipe
    for key, number in PLAYGROUND_SIZES.items():
        assert dict(recipe.data)[key] == number and dict(Recipe().data)[key] == 0
        assert f"(playground: {number})" in (sections()["data"].model_fields[key].description or "")
        for source in ("playground", "store"):  # what is written down holds for either
            assert dict(Recipe().with_settings({"data.source": source, f"data.{key}": 7}).data)[key] == 7
        with pytest.raises(RecipeError, match=f"data.{key} = False is invalid"):
            Recipe().with_settings({"data.source": "playground", f"data.{key}": False})
        with pytest.raises(RecipeError, match=f"data.{key} = -1 is invalid"):
            Recipe().with_settings({f"data.{key}": -1})


def test_whom_to_imitate_is_for_imported_data() -> None:
    store = Recipe().with_settings({"data.imitate": "written"})
    assert store.hash_of("data") != Recipe().hash_of("data")
    with pytest.raises(RecipeError) as caught:
        Recipe().with_settings({"data.source": "playground", "data.imitate": "preferred"})
    assert "[data] is invalid: imitate = 'preferred' is for imported data; the playground writes" in str(caught.value)


def test_a_name_of_a_model_is_no_part_of_the_hash_and_a_later_setting_is_where_it_differs() -> None:
    recipe = Recipe()
    for name in ("ppo", "grpo", "rloo", "rebel", "rejection", "dpo"):
        named = recipe.with_settings({f"{name}.start": "base", f"{name}.reference": "sft"})
        assert named.hash_of(name) == recipe.hash_of(name)
        assert tomllib.loads(to_toml(named))[name]["start"] == "base"
    simpo = recipe.with_settings({"dpo.loss": "simpo"})
    assert len({r.hash_of("dpo") for r in (recipe, simpo, simpo.with_settings({"dpo.gamma": 1.0}))}) == 3


TRAINERS = ("pretrain", "sft", "reward", "ppo", "dpo", "grpo", "rloo", "rebel", "rejection")


@pytest.mark.parametrize("name", TRAINERS)
def test_how_weights_move_is_in_a_key_where_it_differs_from_what_always_was(name: str) -> None:
    recipe = Recipe()
    others = {"schedule": "linear", "weight_decay": 0.0, "adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-6}
    changed = [recipe.with_settings({f"{name}.{key}": value}) for key, value in others.items()]
    changed.append(changed[0].with_settings({f"{name}.warmup": 0.1}))
    assert len({one.hash_of(name) for one in (recipe, *changed)}) == 7
    for one in (recipe, *changed):
        assert (
            parse(tomllib.loads(starter(one)), "bridle.toml")
            == one
            == parse(tomllib.loads(to_toml(one)), "recipe.toml")
        )


def test_a_warmup_is_of_a_schedule_that_is_named() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe().with_settings({"sft.warmup": 0.1})
    assert str(caught.value) == (
        "--set: [sft] is invalid: warmup = 0.1 has no effect on schedule = 'auto'; set schedule to 'linear', 'cosine' or 'constant', or "
        "leave it at 0.03"
    )


@pytest.mark.parametrize("value", [-0.1, "none", True, float("nan"), [0.1]])
def test_a_decay_is_a_number_or_auto(value: object) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe().with_settings({"ppo.weight_decay": value})
    assert str(caught.value).startswith(f"--set: ppo.weight_decay = {value!r} is invalid: must ")
    assert str(caught.value).endswith(", or auto") and str(caught.value).count("ppo.weight_decay") == 1
    assert Recipe().with_settings({"ppo.weight_decay": 1}).ppo.weight_decay == 1.0


DEEP: list[object] = []
for _ in range(50_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"model.hidden_size": 10**12},
            "model.hidden_size = 1000000000000 is invalid: must be less than or equal to 1000000",
        ),
        ({"model.layers": 10**9}, "model.layers = 1000000000 is invalid: must"),
        ({"sampling.max_new_tokens": 10**12}, "is invalid: must be less"),
        ({"ppo.prompts_per_step": 10**10}, "is invalid: must be less"),
        ({"sft.batch_size": 10**9}, "is invalid: must be less"),
        ({"data.train_prompts": 10**18}, "is invalid: must be less"),
        ({"seed": 10**30}, "is invalid: must be less"),
        (
            {"ppo.steps": 10**5000},
            "ppo.steps = a value of type int that is too large to be shown is invalid: must be less",
        ),
        ({"ppo.kl_coef": 10**5000}, "is invalid: must be a valid number"),
        ({"ppo.kl_coef": 1e400}, "is invalid: must be a finite number"),
        ({"ppo.steps": DEEP}, "is invalid: must be a valid integer"),
        ({"reward_source": DEEP}, "is invalid: must be a section of settings"),
        ({"model.path": "a" * 10**7}, "(10,000,002 characters) is invalid: must have at most 4096 characters"),
        ({"model.path": "a" * 10**6 + "\udcff"}, "must be UTF-8, as recipes are kept"),
        ({"seed": {1: {2}}}, "seed = {1: {2}} is invalid: must be a valid integer"),
        (dict([parse_setting("seed=0x" + "f" * 6000)]), "a value of type int that is too large to be shown is invalid"),
        ({"model.path": "a\x00b"}, "model.path = 'a\\x00b' is invalid"),
        ({"a" * 10**6: 1}, "unknown setting 'aaa"),
        ({"ppo." + "a" * 10**6: 1}, "unknown setting 'ppo.aaa"),
        ({"a" * 10**6 + ".b": 1}, "unknown section 'aaa"),
        ({"reward_source": [{"odd": 1}] * 50}, "; and 145 more"),
        ({"grpo.prompts_per_step": 10**5, "grpo.group_size": 10**5}, "more than 10000000 answers at once; take fewer"),
        ({"rloo.prompts_per_step": 10**5, "rloo.group_size": 10**5}, "more than 10000000 answers at once; take fewer"),
        ({"rejection.prompts_per_round": 10**5, "rejection.answers": 10**5}, "more than 10000000 answers at once"),
        (
            {"data.source": "playground", "data.demonstrations": 10**8},
            "more than the playground writes, which is 1000000",
        ),
        ({"data.source": "playground", "data.pretrain_tokens": 10**12}, "more than the playground writes"),
    ],
)
def test_what_no_machine_could_hold_is_refused_in_one_short_sentence(settings: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe().with_settings(settings, "settings")
    told = str(caught.value)
    assert told.startswith("settings: ") and words in told and len(told) < 800 and "\n" not in told


def test_every_count_has_a_bound() -> None:
    for name, section in sections().items():
        for key, field in section.model_fields.items():
            if field.annotation is int:
                with pytest.raises(RecipeError, match="is invalid: must be less"):
                    Recipe().with_settings({f"{name}.{key}": 10**13})


def test_a_recipe_that_may_not_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed=" + "[" * 100_000, "nest too deep"),
        ("seed=" + "1" * 5000, "too many digits"),
        ("a" * 10**6, "takes section"),
    ],
)
def test_a_setting_that_cannot_be_read_is_one_short_sentence(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        parse_setting(text)
    assert len(str(caught.value)) < 300
    if "=" in text:
        (tmp_path / "bridle.toml").write_text(text)
        with pytest.raises(RecipeError, match=f"bridle.toml is not valid TOML: .*{words}"):
            load_recipe(tmp_path / "bridle.toml")
        assert recipe_as_written(tmp_path / "bridle.toml") is None


@pytest.mark.parametrize("text", ["a=1\nb=2", 'a="x"\nb=1', "a=1]\nb=[2", "a=x\ny", "a=1\n[ppo]\nsteps=3"])
def test_a_setting_that_goes_on_in_another_line_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="--set takes one setting, and the value of 'a' goes on in another line"):
        parse_setting(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(
            ("a=/x # y", "/x # y"),
            ("a=1#2", "1#2"),
            ("a=1,2", "1,2"),
            ("a=1,", "1,"),
            ("a=[1,\n2]", [1, 2]),
            ("a=", ""),
        ),
        *(('a="""x\ny"""', "x\ny"), ("a = 3 \n", 3), ("a={b=1}", {"b": 1})),
    ],
)
def test_nothing_of_a_value_is_left_out(text: str, value: object) -> None:
    assert parse_setting(text) == ("a", value)


def test_a_section_that_is_set_keeps_its_other_settings() -> None:
    chosen = Recipe().with_settings({"ppo.steps": 5}).with_settings({"ppo": {"epochs": 3}})
    assert (chosen.ppo.steps, chosen.ppo.epochs) == (5, 3)
