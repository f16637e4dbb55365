"""What `help` lists of a call is what the call takes: each setting with its type, its default and its meaning."""

import inspect
import pydoc
from typing import Any, Literal

import pytest

import bridle
from bridle.api.settings import CALLS, BySize, plain_type, type_text
from bridle.api.trainers import recipe_of
from bridle.core.errors import RecipeError
from bridle.recipe.by_size import settings_by_size
from bridle.recipe.documents import meaning_of
from bridle.recipe.recipe import Recipe, sections
from tests.models.tiny import policy as tiny_policy
from tests.training.runs import DEVICE

WITHOUT = {"Model", "ScoreModel", "load", "load_reward", "mixture", "tensorboard", "tune", "verifier", "wandb"}
WITH_SETTINGS = [name for name in bridle.__all__ if name not in WITHOUT]


def parameters_of(name: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(bridle.api.__dict__[name]).parameters)


@pytest.mark.parametrize("name", WITH_SETTINGS)
def test_each_setting_is_listed_with_type_default_and_meaning(name: str) -> None:
    call, listed = CALLS[name], parameters_of(name)
    page = " ".join(pydoc.render_doc(bridle.api.__dict__[name], renderer=pydoc.plaintext).split())
    assert not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in listed.values())
    assert set(call.settings) <= set(listed) and len(call.settings) > 8
    for key, dotted in call.settings.items():
        section, _, setting = dotted.partition(".")
        field, default = sections()[section].model_fields[setting], listed[key].default
        if key == "online_rounds":  # a parameter of its own
            continue
        usual = dict(dict(Recipe())[section])[setting]
        assert default.otherwise == usual if isinstance(default, BySize) else default == usual
        assert f"{key}: {type_text(plain_type(field.annotation))} = {default!r} {meaning_of(field)}".strip() in page


def test_defaults_by_size_are_those_of_the_rule() -> None:
    by_size = settings_by_size(10**9, 2048)
    for name in WITH_SETTINGS:
        for key, dotted in CALLS[name].settings.items():
            default = parameters_of(name)[key].default
            assert isinstance(default, BySize) is (name != "pretrain" and dotted in by_size), (name, key)
    assert "kl_coef: float = <by the model's size, or 0.12>" in str(bridle.ppo.__doc__)


@pytest.mark.parametrize("name", WITH_SETTINGS)
def test_what_is_listed_is_taken_and_nothing_else(name: str) -> None:
    """Also by the call itself: the signature does not promise what the call refuses."""
    given = {
        key: one.default.otherwise if isinstance(one.default, BySize) else one.default
        for key, one in parameters_of(name).items()
        if key in CALLS[name].settings
    }
    if name == "pretrain":
        given |= {"vocab_size": 300}
    assert recipe_of(CALLS[name], given, 0)
    for key in ("steps_", "start", "scored_by", "observe_every", "branch_problems", "slim", "heldout_answers"):
        with pytest.raises(RecipeError, match=f"'{key}' is not a setting of .{CALLS[name].section}.*"):
            recipe_of(CALLS[name], {key: 1}, 0)
    assert ("online_answers" in CALLS[name].settings) is (name == "online_dpo")


def test_a_call_is_still_the_function_that_it_was() -> None:
    assert inspect.isfunction(bridle.sft) and bridle.sft.__name__ == "sft"
    assert str(bridle.sft.__doc__).startswith("Imitate answers")
    bound = inspect.signature(bridle.sft).bind(bridle.Model(tiny_policy(), DEVICE), [], epochs=3, seed=1)
    assert bound.arguments["epochs"] == 3
    with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
        inspect.signature(bridle.sft).bind(None, [], epoch=3)


def test_types_are_written_without_bounds() -> None:
    field: Any = sections()["sft"].model_fields["weight_decay"]
    kind = plain_type(field.annotation)
    assert kind == float | Literal["auto"] and type_text(kind) == "float | Literal['auto']"
    field = sections()["model"].model_fields["template_kwargs"]
    assert "Annotated" not in type_text(plain_type(field.annotation))
