"""The base model: a small one from nothing, or one of the user's."""

from typing import Any

from bridle.compute.device import Device
from bridle.compute.parallel import from_first
from bridle.compute.randomness import generator
from bridle.compute.steps import Session
from bridle.core.errors import ModelError
from bridle.core.timeline import timed
from bridle.models.decoder import Decoder, DecoderConfig, initialise
from bridle.models.encoding import notes_of
from bridle.models.files.new_tokenizer import train_tokenizer
from bridle.models.policy import Policy
from bridle.models.sizes import require_memory
from bridle.models.template import Template
from bridle.recipe.data import ModelSection
from bridle.recipe.recipe import Recipe
from bridle.stages.data import used_note
from bridle.stages.workspace import Method, Variant, Work, done_before, stage_key
from bridle.training import pretrain


def train_pretrain(work: Work, method: Method, variant: Variant) -> dict[str, Any]:
    """A small model from nothing: tokenizer and weights. With `model.path` set, that model is taken, and nothing pretrained."""
    variant.only(method, "title", "settings")
    recipe = method.recipe(work, variant)
    if recipe.model.path:
        return from_first(work.take_base)
    require_memory(new_config(recipe.model, recipe.model.vocab_size).bytes, "the model of the recipe's [model]")
    parents: dict[str, Any] = {"model": recipe.model.path, "world": work.data.world_hash, **work.data.text_parents()}
    key = stage_key(recipe, ("world", "model", "data", "pretrain"), parents)
    if (before := done_before(work, "pretrain", key, variant.reuse, "base")) is not None:
        return before
    with work.start("pretrain", variant.title, key, parents, recipe) as run:
        texts = work.data.documents(recipe.data.pretrain_tokens)
        few = work.data.tokenizer_texts(texts)
        template = train_tokenizer(few, recipe.model.vocab_size)
        with timed("encode"):
            rows = pretrain.rows_of(template.document_ids(texts), recipe.pretrain.length)
        tokens, there = recipe.data.pretrain_tokens, len(rows) * recipe.pretrain.length
        for note in notes_of(few):
            work.progress.say(f"texts: {note}")
        for note in used_note(tokens, there, "data.pretrain_tokens"):
            work.progress.say(f"tokens: {note}")
        policy = new_policy(recipe, template, work.device)
        session = Session(run, work.device, recipe.seed)
        result = pretrain.train(policy, rows, tokens, recipe.pretrain, session)
        saved = work.keep_policy("base", "base", policy, None)
        parameters = sum(p.numel() for p in policy.module.parameters())
        return run.finish({**result, "documents": len(texts), "parameters": parameters, "model": saved})


def new_policy(recipe: Recipe, template: Template, device: Device) -> Policy:
    """A model of the recipe's shape with random weights."""
    config = new_config(recipe.model, template.tokenizer.get_vocab_size())
    module = Decoder(config)
    initialise(module, config.layers, generator(recipe.seed, "weights"))
    return Policy(module.to(device.torch), template, "new")


def new_config(section: ModelSection, vocab_size: int) -> DecoderConfig:
    """The shape that the recipe names; ModelError where it is none."""
    if section.hidden_size % (2 * section.heads):
        raise ModelError(
            f"model.hidden_size must be a multiple of 2 × heads, got {section.hidden_size} and {section.heads}"
        )
    if section.heads % section.kv_heads:
        raise ModelError(f"model.heads must be a multiple of kv_heads, got {section.heads} and {section.kv_heads}")
    shape = {"hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "max_positions"}
    head_size = section.hidden_size // section.heads
    # Qwen 3's norms of queries and keys let a small model learn far faster (docs/failures.md).
    return DecoderConfig("qwen3", vocab_size=vocab_size, head_size=head_size, **section.model_dump(include=shape))
