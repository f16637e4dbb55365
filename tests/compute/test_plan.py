"""`bridle plan`: its terms against what is really held, its figures against what was measured, and recipes that would not fit refused."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bridle
from bridle.compute import device
from bridle.compute.optimizer import clipped_step, optimizers_of
from bridle.compute.plan.memory import Need, Range, RowTokens
from bridle.compute.plan.stages import fit_verdict, plan_stage
from bridle.compute.shapes import GIB, PUBLIC_SHAPES, Card, Shape, public_shape
from bridle.core.errors import ModelError
from bridle.generation.native import Matrix, PackedDecoder, pack_decoder
from bridle.models.batches import make_batch, masked_logprobs
from bridle.models.decoder import Decoder, DecoderConfig
from bridle.models.lora.adapter import learning_tensors, with_adapter
from bridle.models.sizes import config_shape, planned_shape
from bridle.recipe.recipe import Recipe, load_recipe, trained_names
from tests.house.source import ROOT
from tests.models.tiny import random_ids, write_foreign
from tests.test_own_model import write_mine
from tests.tiny_project import PLAYGROUND, complaint, done, settings
from tests.tiny_project import bridle as run_bridle

RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.toml"))
MEASURED = json.loads((ROOT / "benchmarks" / "results" / "plan.json").read_text("utf-8"))["cases"]
CPU = Card(24 * GIB, "cpu", 4)


def config(tied: bool = True) -> DecoderConfig:
    return DecoderConfig("qwen3", 1_000, 64, 192, 3, 4, 2, 16, max_positions=128, tie_embeddings=tied)


def shape(tied: bool = True) -> Shape:
    return config_shape(config(tied).to_huggingface(), Path("here"))


def need(method: str = "sft", tied: bool = True, **values: Any) -> Need:
    chosen = {f"{method}.optimizer": "adamw", **{key.replace("__", "."): value for key, value in values.items()}}
    return Need(method, Recipe().with_settings(chosen), shape(tied), CPU, 1)


def numbers(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def size(tensors: Sequence[Tensor]) -> int:
    """Bytes, each storage once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


# -------------------------------------------------------------------------------------------------- shapes and their weights


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen3-0.6B", 596_049_920), ("Qwen3-1.7B", 1_720_574_976), ("Qwen3-4B", 4_022_468_096), ("Qwen3-8B", 8_190_735_360),
        ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400), ("Llama-3.2-3B", 3_212_749_824), ("Llama-3.1-8B", 8_030_261_248),
        ("HuggingFaceTB/SmolLM2-135M", 134_515_008), ("smollm2-360m", 361_821_120), ("SmolLM2-1.7B", 1_711_376_384),
    ],
)  # fmt: skip
def test_public_shapes_have_as_many_weights_as_was_published(name: str, parameters: int) -> None:
    assert public_shape(name).whole == pytest.approx(parameters, rel=1e-4)  # norms within heads are left out


@pytest.mark.parametrize("tied", [True, False])
def test_weights_and_adapters_are_counted_as_the_network_has_them(tied: bool) -> None:
    module = Decoder(config(tied))
    assert need(tied=tied).shape.whole == pytest.approx(numbers(module), rel=1e-3)
    assert need(tied=tied).shape.trunk == pytest.approx(numbers(module.model), rel=1e-3)
    chosen = need(lora__r=4, lora__target_modules=["q_proj", "down_proj"])
    adapted = with_adapter(module, chosen.recipe.lora)
    assert chosen.adapter == sum(weight.numel() for weight in learning_tensors(adapted).values())


def test_a_shape_is_read_from_config_json_and_never_from_weights(tmp_path: Path) -> None:
    raw = config(False).to_huggingface()
    (tmp_path / "config.json").write_text(json.dumps(raw))
    section = Recipe().with_settings({"model.path": str(tmp_path)}).model
    assert planned_shape(section, tmp_path) == replace(shape(False), max_positions=128)
    del raw["num_hidden_layers"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match=r"does not say num_hidden_layers|does not say n_layer"):
        planned_shape(section, tmp_path)
    assert planned_shape(Recipe().model).whole < 2_000_000  # the recipe's own


def test_experts_are_counted_by_the_headers_of_their_files(tmp_path: Path) -> None:
    network = write_foreign(tmp_path, "mixtral")
    section = Recipe().with_settings({"model.path": str(tmp_path)}).model
    found = planned_shape(section, tmp_path)
    assert found.whole == pytest.approx(network.num_parameters(), rel=0.01)
    assert found.whole > 1.5 * replace(found, counted=0).whole


# ------------------------------------------------------------------------------------------------- terms, by what is held


@pytest.mark.parametrize("kernels", ["auto", "plain"])
def test_what_autograd_keeps_is_what_is_counted(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a forward pass of prompts and answers, in float32, by the hooks of autograd: activations, joined weights, kept logits."""
    monkeypatch.setattr("bridle.kernels.kernels.wish", kernels)
    module, chosen = Decoder(config()), need(model__kernels=kernels)
    batch = make_batch(random_ids(8, 32, 32), random_ids(8, 32, 32), 0)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):  # type: ignore[func-returns-value]
        masked_logprobs(module, batch).sum()
    own = {weight.untyped_storage().data_ptr() for weight in module.parameters()}
    held = size([t for t in saved if t.untyped_storage().data_ptr() not in own])
    states = 4 * 8 * 32 * 64  # the answers' states, which the head keeps
    expected = chosen.activations(8 * 64, 0.5) + chosen.joined() + states
    assert held == pytest.approx(expected, rel=0.05 if kernels == "auto" else 0.25)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_moments_are_what_the_optimizers_hold(optimizer: str) -> None:
    module, chosen = Decoder(config()), need(sft__optimizer=optimizer)
    for weight in module.parameters():
        weight.grad = torch.ones_like(weight)
    optimizers = optimizers_of(module, chosen.section, 1e-3)
    clipped_step([module], optimizers, 1.0)
    held = [t for one in optimizers for state in one.state.values() for t in state.values() if t.dim()]
    assert chosen.moments() == pytest.approx(size(held), rel=0.01)


def test_the_engine_holds_a_copy_with_the_head_apart() -> None:
    packed = pack_decoder(Decoder(config()), "stamp", torch.float32)
    held = [packed.embedding, packed.head.weight]
    held += [one.weight for layer in packed.layers for one in (layer.qkv, layer.out, layer.gate_up, layer.down)]
    found = need("dpo").phases(*need("dpo").lengths(0)[1:])["answers"]["engine's copy"]
    assert isinstance(packed, PackedDecoder) and isinstance(packed.head, Matrix)
    assert found.expected == pytest.approx(size(held), rel=0.02)


def test_a_step_in_parts_holds_gradients_beside_activations() -> None:
    whole, parts = need(sft__batch_size=8), need(sft__batch_size=8, sft__micro_batch=2)
    (one, other) = (each.phases(*each.lengths(64)[1:])["begins the backward pass"] for each in (whole, parts))
    assert one["activations kept for the gradient"].expected > 3 * other["activations kept for the gradient"].expected
    assert "gradients" not in one and other["gradients"].expected == 4 * shape().whole


def test_a_bound_of_tokens_is_one_of_what_is_kept() -> None:
    def kept(name: str, **settings: Any) -> float:
        phases = need(name, **settings).phases(RowTokens(32, 32, 4), RowTokens(32, 32, 4))
        return phases["begins the backward pass"]["activations kept for the gradient"].expected

    assert kept("sft", sft__batch_size=8) == pytest.approx(
        4 * kept("sft", sft__batch_size=8, sft__micro_tokens=320), rel=0.2
    )
    rows = {
        name: kept(name, **{f"{name}__micro_tokens": 1}) / kept(name, **{f"{name}__batch_size": together})
        for name, together in (("grpo", 4), ("rebel", 2))
    }
    assert rows["grpo"] == pytest.approx(64 / 160, rel=0.2)  # an answer with its prompt, of a prompt with its four
    assert rows["rebel"] > 0.9  # whose pairs are never cut


def test_an_adapter_has_no_second_base_and_no_waiting_copies() -> None:
    adapted = need("dpo", lora__r=4)
    assert adapted.reference()["weights: reference"] == Range(0, 0, 0)
    assert adapted.phases(*adapted.lengths(64)[1:])["begins the backward pass"]["products' copies of weights"] == Range(
        0, 0, 0
    )
    other = need("dpo", lora__r=4, dpo__reference="elsewhere").reference()
    assert other["weights: reference"].expected == 4 * shape().whole
    narrow = need("dpo", lora__r=4, model__frozen_precision="bfloat16").weights()
    assert narrow["weights: policy"].expected == 2 * shape().whole


def test_a_base_in_four_bits_is_counted_with_its_constants() -> None:
    chosen = need("ppo", lora__r=4, lora__shared_trunk=True, model__frozen_precision="nf4")
    held, whole, layers = chosen.weights(), shape().whole, shape().matrices
    assert held["weights: policy"].expected == 2 * (whole - layers) + layers / 2
    assert held["constants of the four bits"].expected == pytest.approx(layers * (1 / 64 + 1 / 4096))
    assert held["adapter: reward model"].expected == held["adapter: critic"].expected == 4 * chosen.adapter
    alone = need("ppo", lora__r=4, model__frozen_precision="nf4").weights()
    assert alone["weights: reward model"].expected == 2 * (shape().trunk - layers) + layers / 2


def test_a_server_on_the_same_card_is_there_in_turns() -> None:
    def phases(**settings: Any) -> dict[str, Any]:
        chosen = need(
            "ppo", lora__r=4, rollout__endpoint="http://127.0.0.1:8000/v1", rollout__concurrency=8, **settings
        )
        return chosen.phases(RowTokens(32, 32), RowTokens(32, 32))

    found, apart = phases(), phases(rollout__sleeps=False)
    names = {name for parts in found.values() for name in parts}
    assert (
        not names & {"engine's copy", "prompts being read, logits"} and "server: CUDA and libraries" in found["scores"]
    )
    assert found["answers"]["server awake: keys and values"].expected == 8 * 64 * 2 * 2 * shape().kv_heads * 16 * 3
    assert found["answers"]["server awake: weights"].expected == 2 * shape().whole
    assert not any(
        name.startswith("server awake") for phase, parts in found.items() if phase != "answers" for name in parts
    )
    assert not any(name.startswith("server awake") for name in apart["answers"])
    assert "engine's copy" in phases(ppo__scored_by="verifier")["answers"]


def test_a_reference_that_is_read_once_is_gone_while_a_policy_learns() -> None:
    once, always = (need(name).phases(*need(name).lengths(64)[1:]) for name in ("dpo", "grpo"))
    assert "weights: reference" in once["reads the reference"] and "weights: reference" in once["measures the KL"]
    assert "weights: reference" not in once["begins the backward pass"]
    assert "weights: reference" in always["begins the backward pass"]


def test_moments_beside_a_card_are_there_one_weight_at_a_time() -> None:
    beside = replace(need(model__offload_optimizer=True), card=Card(GIB, "cuda", 2))
    assert beside.moments() == 8 * shape().embedding < need().moments() / 2
    assert replace(beside, card=CPU).moments() == need().moments()


def test_layers_that_are_run_again_keep_what_goes_in() -> None:
    whole, again = (need(model__checkpoint_activations=value) for value in (False, True))
    tokens, layer = 512, (whole.activations(512, 1.0) - 512 * 16 * 64) / 3
    assert again.activations(tokens, 1.0) == pytest.approx(tokens * 16 * 64 + tokens * 3 * 8 * 64 + layer)
    assert again.joined() == whole.joined() / 3


def test_what_does_not_answer_needs_no_engine() -> None:
    assert "answers" in need("dpo").phases(*need("dpo").lengths(0)[1:])
    assert "answers" not in need("dpo", dpo__observe_every=0).phases(*need("dpo").lengths(0)[1:])
    assert "answers" not in need("sft").phases(*need("sft").lengths(0)[1:])


# ------------------------------------------------------------------------------------------------------- as measured


@pytest.mark.parametrize("case", MEASURED)
def test_what_was_measured_lies_within_the_plan(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import plan as benchmark

    low, expected, high = benchmark.expected(case)
    assert low <= MEASURED[case]["measured"] <= high
    assert expected == pytest.approx(MEASURED[case]["measured"], rel=0.15)


def test_the_page_has_the_table_of_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import plan as benchmark

    text = benchmark.PAGE.read_text("utf-8")
    assert "\n".join(["", *benchmark.rows_of_table(MEASURED), ""]) in text, "python benchmarks/plan.py --table"


# ------------------------------------------------------------------------------------------------------ what is said


def test_more_cards_share_the_rows_and_each_holds_the_model() -> None:
    recipe = Recipe().with_settings({"model.path": "Qwen3-0.6B", "sft.batch_size": 16, "sft.optimizer": "adamw"})
    one, four = (plan_stage("sft", recipe, PUBLIC_SHAPES["Qwen3-0.6B"], CPU, gpus, 512) for gpus in (1, 4))
    assert four.peak.low == one.peak.low and four.peak.expected < one.peak.expected
    assert four.operations == one.operations


def moved_by(trainer: str, shard: bool) -> dict[str, tuple[float, float]]:
    """Of the tiny model of benchmarks/plan.py on two ranks: calls, and bytes of what each is about, whole."""
    settings = {f"{trainer}.optimizer": "adamw", "scale.shard": shard, "sft.batch_size": 8}
    settings |= {"ppo.prompts_per_step": 8, "ppo.minibatches": 1, "ppo.epochs": 1, "ppo.batch_size": 8}
    tiny = Shape(4_096, 32, 32, 1, 2, 2, 16, max_positions=1024)
    found = plan_stage(trainer, Recipe().with_settings(settings), tiny, CPU, 2, 16).moved
    return {name: (one.calls, 2 * one.bytes.expected) for name, one in found.items()}


def test_what_ranks_send_is_what_was_counted() -> None:
    """Of a step, by benchmarks/moved.py: Collectives on two ranks with gloo; norms within heads are left out."""
    data, sft, ppo = moved_by("sft", False), moved_by("sft", True), moved_by("ppo", True)
    assert data["gradients added up"][1] / 2 == pytest.approx(2_213_888 / 4, rel=0.01)
    assert sft["weights gathered to learn"] == (3, pytest.approx(2_330_112 / 4, rel=0.01))
    assert sft["gradients added up"] == (2, pytest.approx(2_213_888 / 4, rel=0.01))
    gathered = [ppo[name] for name in ("weights gathered to learn", "weights gathered to read")]
    assert tuple(map(sum, zip(*gathered, strict=True))) == (8, pytest.approx(2_446_848 / 2, rel=0.01))
    assert ppo["gradients added up"] == (4, pytest.approx(2_214_400 / 2, rel=0.01))


@pytest.mark.parametrize(
    ("gib", "said"), [(9.0, "fits"), (4.0, "should fit"), (2.0, "may not fit"), (0.5, "does not fit")]
)
def test_the_verdict_follows_from_the_range(gib: float, said: str) -> None:
    assert fit_verdict(Range(1 * GIB, 3 * GIB, 5 * GIB), Card(gib * GIB)) == said


def test_the_time_of_more_tokens_and_of_a_frozen_base() -> None:
    def operations(**values: Any) -> float:
        chosen = need(**values)
        return plan_stage("sft", chosen.recipe, shape(), CPU, 1, 64).operations.expected

    assert operations(data__demonstrations=2000) == pytest.approx(2 * operations())
    assert operations(lora__r=4) == pytest.approx(2 / 3 * operations())


def test_the_command_plans_every_method_of_a_project(tmp_path: Path) -> None:
    done("init", tmp_path / "p", *settings(PLAYGROUND))
    found = json.loads(done("plan", "--project", tmp_path / "p", "--card", "24gb", "--json"))["plans"]
    assert [one["method"] for one in found] == trained_names()
    for one in found:
        low, expected, high = one["peak"]
        assert 0 < low <= expected <= high < one["card"] == 23.5
        assert one["verdict"] == "fits" and one["phase"] in one["phases"] and one["seconds"] is None
        assert sum(part[1] for part in one["parts"].values()) == pytest.approx(expected, abs=0.01)
    said = done("plan", "--project", tmp_path / "p", "--stage", "ppo", "--card", "0.2", "--tflops", "1")
    assert said.startswith("ppo: may not fit") and "a layer's activations" in said and "of computing" in said


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--set", "model.path=gpt9"], "no public shape is called that; .* Qwen3-0.6B"),
        (["--card", "huge"], "--card takes 24gb, 80gb or a number of GiB, got 'huge'"),
        (["--card", "nan"], "--card takes"),
        (["--stage", "nothing", "--card", "24gb"], "'nothing' is not a method"),
    ],
)
def test_what_cannot_be_planned_is_refused(words: list[str], why: str) -> None:
    assert re.search(why, complaint(run_bridle("plan", RECIPES[0], *words)))


# --------------------------------------------------------------------------------------- too little memory, before a step


def test_training_is_refused_where_even_the_least_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "p"
    done("init", project, *settings(PLAYGROUND))
    monkeypatch.setattr(device, "card_here", lambda precision: Card(100_000, "cpu", 4))
    said = complaint(run_bridle("train", "pretrain", "--project", project))
    assert "pretrain needs at least 0.0 GiB of memory, and this machine has" in said and "bridle plan" in said
    assert not list((project / "runs").glob("pretrain-*"))


def test_a_call_is_refused_too_and_a_run_that_may_fit_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bridle.load(write_mine(tmp_path / "mine"))
    rows = [("Say hello.", "Hello!")] * 4
    least = plan_stage("sft", Recipe().with_settings({"sft.optimizer": "adamw"}), model.shape, CPU).peak.low
    monkeypatch.setattr(device, "card_here", lambda precision: Card(least - 1, "cpu", 4))
    with pytest.raises(ModelError, match="sft needs at least .* GiB of memory"):
        bridle.sft(model, rows, optimizer="adamw")
    monkeypatch.setattr(device, "card_here", lambda precision: Card(least + 1, "cpu", 4))
    bridle.sft(model, rows, optimizer="adamw", epochs=1)


# ------------------------------------------------------------------------------------------------------------ recipes


def computed(path: Path) -> str:
    """The comment that a recipe begins with, by the command that stands in it."""
    text = path.read_text("utf-8")
    words = re.search(r"--stage (\S+) --card (\S+) --tokens (\d+)", text)
    assert words is not None and f"bridle plan examples/recipes/{path.name}" in text
    found = json.loads(done("plan", path, *words[0].split(), "--json"))["plans"][0]
    low, expected, high = found["peak"]
    return (
        f"# computed: {words[1]} with rows of up to {int(words[3]):,} tokens {found['verdict']} a card of {found['card']} GiB: "
        f"{expected:.1f} GiB expected, {low:.1f} to {high:.1f}"
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_planned_as_its_comment_says(path: Path) -> None:
    assert path.read_text("utf-8").splitlines()[0] == computed(path)
    recipe = load_recipe(path)
    assert recipe.model.path.rpartition("/")[2] in PUBLIC_SHAPES


def test_every_byte_of_the_recipe_for_one_card_stands_in_the_page() -> None:
    recipe, card = load_recipe(ROOT / "examples/recipes/one-24gb.toml"), Card(23.5 * GIB, "cuda", 2)
    plan = plan_stage("ppo", recipe, public_shape(recipe.model.path), card, tokens=1024)
    phases = ("answers", "begins the backward pass", "ends the backward pass")
    parts = dict.fromkeys(part for phase in phases for part in plan.phases[phase])

    def cell(phase: str, part: str) -> str:
        found = plan.phases[phase].get(part)
        return f"{found.expected / GIB:.3f}" if found is not None and found.expected else ""

    rows = [f"| {part} | {' | '.join(cell(phase, part) for phase in phases)} |" for part in parts]
    sums = [f"{sum(part.expected for part in plan.phases[phase].values()) / GIB:.1f}" for phase in phases]
    table = [
        f"| | {' | '.join(phases)} |",
        "|---|---|---|---|",
        *filter(lambda row: "." in row, rows),
        f"| in all | {' | '.join(sums)} |",
    ]
    text = (ROOT / "docs/scaling.md").read_text("utf-8")
    assert "\n".join(table) in text, "\n".join(table)
    assert fit_verdict(plan.peak, card) == "fits"


def test_recipes_span_the_models_that_are_promised() -> None:
    assert {load_recipe(path).model.path.rpartition("/")[2] for path in RECIPES} == {
        "Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-4B", "Qwen3-8B", "Llama-3.2-1B", "Llama-3.2-3B", "Llama-3.1-8B",
    }  # fmt: skip
