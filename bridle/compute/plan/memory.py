"""Memory of a card at its peak, and arithmetic, from a shape and the recipe alone.

A run passes through phases: it answers prompts, scores the answers, reads the reference, learns. Each holds parts of known size, and the
largest phase is the peak. Weights, gradients and moments are exact, and `low` is of them alone, without what a function of the user's may
replace. What grows with the rows is as uncertain as they are: `high` takes long ones, and a quarter more for gaps between blocks of memory.
Where weights are divided over ranks (compute/sharding.py) each term says what a rank has of it. `benchmarks/plan.py` measures it
(docs/scaling.md).

Units: bytes, tokens, floating-point operations. Letters in comments: D hidden size, F inner size, V vocabulary, Q = heads × head size,
K = key/value heads × head size, N tokens at once, e bytes of a product (2 in bfloat16, else 4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bridle.compute.shapes import GIB, Card, Shape, fullest_piece
from bridle.recipe.base import TrainerSection
from bridle.recipe.offline import NO_REFERENCE
from bridle.recipe.recipe import Recipe

FRAME = {"cpu": 0.3, "cuda": 0.6}  # GiB of Python and PyTorch; of CUDA's context and its libraries' workspaces
GAPS = 1.25  # high: of what comes and goes, for an allocator leaves gaps
UNSAID_PROMPT = 256  # tokens, where nothing is said of the rows
UNSAID_ROWS = 1000  # of imported data whose number the recipe leaves open
# Rows at once, in rewards/learned.py, generation/reference.py, evaluation/answers.py and stages/workspace.py; spare slots of native.py.
SCORED, READ, OBSERVED, ANSWERED, AHEAD = 128, 16, 64, 256, 96
MOMENTS, MOMENTUM = 8, 4  # bytes a weight: AdamW's two, Muon's one
CONSTANTS = 1 / 64 + 4 / (64 * 256)  # bytes a weight in four bits, besides its half (models/lora/four_bit.py)


class Range(NamedTuple):
    """Of a number that nobody knows yet."""

    low: float
    expected: float
    high: float


Parts = dict[str, Range]


def fixed_size(size: float, certain: bool = True) -> Range:
    """Known to the byte; `certain`: nothing that the recipe does not name could replace it."""
    return Range(size if certain else 0, size, size)


def total(parts: Mapping[str, Range]) -> Range:
    low, expected, high = (sum(numbers) for numbers in zip(*parts.values(), strict=True))
    return Range(low, expected, high)


@dataclass(frozen=True)
class RowTokens:
    """One row as it is read: tokens of the prompt and of an answer, `answers` of them behind one prompt."""

    prompt: float
    answer: float
    answers: int = 1

    @property
    def tokens(self) -> float:
        return self.prompt + self.answers * self.answer


@dataclass(frozen=True)
class Need:
    """One method on one card. The recipe's settings are read here, each term beside the place in the code where it arises."""

    name: str  # of its section
    recipe: Recipe
    shape: Shape
    card: Card
    gpus: int

    @property
    def section(self) -> TrainerSection:
        found: TrainerSection = dict(self.recipe)[self.name]
        return found

    def setting(self, name: str, default: int = 0) -> int:
        """A whole number of the section, where it has one of that name."""
        return int(dict(self.section).get(name) or default)

    # ------------------------------------------------------------------------------------------------------- rows

    @property
    def practises(self) -> bool:
        """Whether it answers prompts and is scored."""
        return "scored_by" in type(self.section).model_fields and (
            self.name != "dpo" or self.setting("online_rounds") > 0
        )

    @property
    def observes(self) -> bool:
        """Whether it answers prompts now and then to be looked at (stages/preferences.py: observer)."""
        return self.setting("observe_every") > 0 and not self.practises

    @property
    def answers(self) -> int:
        """To a prompt, in a rollout."""
        own = {"ppo": 1, "rebel": 2, "rejection": self.setting("answers"), "dpo": self.setting("online_answers")}
        return own.get(self.name, self.setting("group_size", 1))

    @property
    def prompts(self) -> int:
        """Of a rollout."""
        return next(filter(None, map(self.setting, ("prompts_per_step", "prompts_per_round", "online_prompts"))), 0)

    def lengths(self, longest: int) -> tuple[RowTokens, RowTokens, RowTokens]:
        """Low, expected and high."""
        context, new = self.shape.max_positions, self.recipe.sampling.max_new_tokens
        usual = min(context, longest or UNSAID_PROMPT + new)
        sizes = (usual / 4, usual, usual if longest else min(context, 4 * usual))
        if self.name == "pretrain":
            return (RowTokens(0, self.setting("length")),) * 3
        found = []
        for tokens, answers in zip(sizes, self.compared(), strict=True):
            answer = min(new, 0.75 * tokens) if self.practises else tokens / 2
            found.append(RowTokens(tokens - answer, answer, answers))
        return found[0], found[1], found[2]

    def compared(self) -> tuple[int, int, int]:
        """Answers that share a prompt in one row (models/batches.py: pack_answers): a pair's two, or all that were sampled."""
        if self.practises:
            together = self.name in ("grpo", "rloo", "rebel", "dpo")
            return (self.answers if together else 1,) * 3
        if self.name in ("reward", "dpo", "kto", "orpo"):
            return 2, 2, max(2, self.recipe.sampling.answers)
        return 1, 1, 1

    def at_once(self, usual: RowTokens) -> tuple[float, int]:
        """Rows (a prompt with the answers that share it) in one forward and backward pass on a card, and how many passes a step has."""
        size = self.section.batch_size
        if self.name in ("ppo", "grpo", "rloo", "rebel"):  # batch_size counts answers in a pass
            group = self.compared()[1]
            step = self.prompts / self.setting("minibatches", 1) / self.gpus
            rows = min(step, max(1, size // group))
        else:
            step = size / self.gpus
            rows = min(step, self.setting("micro_batch") or step)
        rows = self.bounded(max(1.0, rows) * usual.tokens, usual) / usual.tokens
        return rows, math.ceil(max(1.0, step) / rows - 1e-9)

    def bounded(self, tokens: float, rows: RowTokens) -> float:
        """No more of such rows than `micro_tokens`, or one; where the loss takes each answer by itself, a group is cut too
        (generation/rollout.py: read_parts)."""
        alone = rows.prompt + rows.answer if self.name in ("grpo", "rloo") else rows.tokens
        return min(tokens, max(self.section.micro_tokens, alone)) if self.section.micro_tokens else tokens

    # ----------------------------------------------------------------------------------------------------- weights

    @property
    def adapter(self) -> int:
        """Numbers of an adapter, 0 where there is none."""
        return self.adapter_piece(1)

    def adapter_piece(self, ranks: int) -> int:
        """Those of them that each of so many ranks holds (models/lora/low_rank.py: A [r, in] and B [out, r] of each map that gets one)."""
        lora, shape, r = self.recipe.lora, self.shape, self.recipe.lora.r or 16
        if not lora.on or self.name == "pretrain":
            return 0
        chosen = [
            sizes
            for name, sizes in shape.maps.items()
            if not lora.target_modules or name.endswith(tuple(lora.target_modules))
        ]
        pairs = sum(fullest_piece(r, inputs, ranks) + fullest_piece(outputs, r, ranks) for inputs, outputs in chosen)
        whole = [name for name in lora.modules_to_save if name.endswith(("embed_tokens", "lm_head"))]
        return shape.layers * pairs + len(whole) * fullest_piece(shape.vocab_size, shape.hidden_size, ranks)

    @property
    def ranks(self) -> int:
        """Over how many the weights that learn are divided."""
        return self.gpus if self.recipe.scale.shard else 1

    @property
    def learns(self) -> dict[str, int]:
        """Numbers that are trained, of each network by its name."""
        if self.name == "reward":
            return {"reward model": self.adapter or self.shape.trunk}
        critic = {"critic": self.adapter or self.shape.trunk} if self.name == "ppo" and not self.shares_trunk else {}
        return {"policy": self.adapter or self.shape.whole, **critic}

    @property
    def held(self) -> dict[str, int]:
        """Those of them that a rank holds: all, or its pieces, with the gradients and moments of these alone."""
        own = self.adapter_piece(self.ranks)
        return {name: own or self.shape.piece(self.ranks, head=name == "policy") for name in self.learns}

    @property
    def shares_trunk(self) -> bool:
        return self.name == "ppo" and self.recipe.ppo.shared_trunk

    def weights(self) -> Parts:
        """Of every network that stays while the run lasts. Under an adapter all lie on one frozen base, but for reward models."""
        shape, adapter = self.shape, self.adapter
        own = 4 * self.held.get("policy", shape.whole)
        found = {"weights: policy": fixed_size(self.frozen(shape.whole) if adapter else own)}
        if adapter and self.four_bits:
            found["constants of the four bits"] = fixed_size(CONSTANTS * shape.matrices)
        what = "adapter" if adapter else "weights"
        learnt = {name: count for name, count in self.held.items() if adapter or name != "policy"}
        found |= {f"{what}: {name}": fixed_size(4 * count) for name, count in learnt.items()}
        if self.practises and dict(self.section)["scored_by"] == "reward":
            shared, copies = self.recipe.lora.shared_trunk and adapter, self.recipe.reward.members
            size = (4 * adapter if shared else self.frozen(shape.trunk)) * copies
            found[f"{'adapter' if shared else 'weights'}: reward model"] = fixed_size(size, certain=False)
        return found

    def frozen(self, whole: int) -> float:
        """Bytes of so many weights that nothing trains (models/lora/frozen.py): four bits are of the layers' matrices."""
        return self.frozen_bytes * whole - (1.5 * self.shape.matrices if self.four_bits else 0)

    @property
    def four_bits(self) -> bool:
        return self.recipe.model.frozen_precision == "nf4"

    def reference(self) -> Parts:
        """It stays where a policy practises. DPO and KTO let it go once it was read, and read it again to look at the policy's answers
        (stages/preferences.py: free_weights, kept_reader)."""
        names = dict(self.section)
        if not (self.practises or self.name in ("dpo", "kto")) or names.get("loss") in NO_REFERENCE:
            return {}
        shared = self.adapter and names["reference"] in ("", names["start"])  # it is the base
        return {"weights: reference": fixed_size(0 if shared else self.frozen(self.shape.whole))}

    @property
    def frozen_bytes(self) -> int:
        """Of a weight that nothing trains (models/lora/frozen.py)."""
        return 4 if self.recipe.model.frozen_precision == "float32" else 2

    def moments(self) -> float:
        """Of the optimisers (compute/optimizer.py), from the first step on; offloaded from a card those of one weight at a time."""
        shape, count = self.shape, sum(self.held.values())
        if self.recipe.model.offload_optimizer and self.card.kind == "cuda":
            return MOMENTS * min(count, max(shape.embedding, shape.hidden_size * shape.intermediate_size))
        muon = shape.matrices * len(self.learns) if self.section.optimizer == "muon" and not self.adapter else 0
        return MOMENTS * count - (MOMENTS - MOMENTUM) * muon

    # ------------------------------------------------------------------------------------------------------ phases

    def phases(self, usual: RowTokens, longest: RowTokens) -> dict[str, Parts]:
        """What is alive at the peak of each phase."""
        each, size = (usual, longest), self.section.batch_size
        frame = {"Python, PyTorch and libraries": fixed_size(FRAME[self.card.kind] * GIB, certain=False)}
        reference, always = self.reference(), frame | self.weights()
        if self.name in ("dpo", "kto") and not self.practises and reference:
            read = []
            for rows in each:
                tokens = self.bounded(READ * rows.tokens, rows)
                read.append(self.reading(tokens) + self.head(tokens * rows.answers * rows.answer / rows.tokens))
            found = {"reads the reference": always | reference | {"a layer's activations, logits": widened(read)}}
        else:
            found = {}
        own = "optimizer" in self.section.brought  # whose state nobody knows
        always |= {"optimiser's moments": fixed_size(self.moments(), certain=not own)}
        always |= reference if self.practises else {}
        if self.practises and self.recipe.rollout.endpoint:
            # Held-out problems of a verifier are answered here (stages/practice.py: check_answers).
            if dict(self.section)["scored_by"] == "verifier":
                always["engine's copy"] = fixed_size(self.packed, certain=False)
            found["answers"] = always | self.awake(each)
            always |= self.asleep
        elif self.practises or self.observes:
            always["engine's copy"] = fixed_size(self.packed, certain=self.practises)
            found["answers"] = always | self.answering(each)
        if self.practises:
            asked = min(SCORED, self.prompts * self.answers)
            scored = [self.reading(asked * (rows.prompt + rows.answer)) for rows in each]
            found["scores"] = always | {"a layer's activations": widened(scored)}
            running = self.running()
            read = []
            for rows in each:
                tokens = self.bounded(max(1, size // rows.answers) * rows.tokens, rows)
                read.append(self.reading(tokens) + self.head(tokens * rows.answers * rows.answer / rows.tokens))
            found["reads the reference"] = always | running | {"a layer's activations, logits": widened(read)}
        elif self.observes and reference:
            read = [
                self.reading(OBSERVED * (rows.prompt + rows.answer)) + self.head(OBSERVED * rows.answer)
                for rows in each
            ]
            found["measures the KL"] = always | reference | {"a layer's activations, logits": widened(read)}
        found |= {name: always | parts for name, parts in self.learning(each).items()}
        if self.section.optimizer == "muon" and not self.adapter:
            gradients = fixed_size(4 * sum(self.learns.values()))
            found["steps"] = always | {"gradients": gradients, "Muon's updates": fixed_size(self.updates())}
        return found | {name: always | parts for name, parts in self.whole_for_a_moment().items()}

    def whole_for_a_moment(self) -> dict[str, Parts]:
        """Divided weights in their plain form (compute/sharding.py), where the run ends all of them; and what a checkpoint has, moments
        too, which the first rank gathers in the processor's memory, a card one matrix of it at a time (compute/checkpoint.py)."""
        if self.ranks == 1:
            return {}
        whole = {f"whole: {name}": fixed_size(4 * count) for name, count in self.learns.items()}
        shape = self.shape
        one = 4 * max(shape.embedding, shape.hidden_size * shape.intermediate_size)
        kept = one if self.card.kind == "cuda" else (4 + MOMENTS) * sum(self.learns.values())
        saving = {"whole: what is saved": fixed_size(kept)}
        return {"is made whole": whole, "saves a checkpoint": saving}

    @property
    def groups(self) -> dict[str, tuple[float, float]]:
        """Numbers of a layer, and of what is beside the layers, of each network: what is gathered at once where it is divided."""
        layers = self.shape.layers
        around = 0 if self.adapter else self.shape.embedding
        heads = {"policy": around * (not self.shape.tied)}
        return {
            name: ((count - around - heads.get(name, 0)) / layers, around + heads.get(name, 0))
            for name, count in self.learns.items()
        }

    def running(self) -> Parts:
        """Of weights that are divided: what is beside the layers is whole from the first pass on, a layer while it runs, as it comes and
        as it is laid out."""
        if self.ranks == 1:
            return {}
        layer = max(layer for layer, _ in self.groups.values())
        around = sum(around for _, around in self.groups.values())
        return {"whole while it runs": Range(0, 4 * (2 * layer + around), 4 * (3 * layer + around))}

    @property
    def packed(self) -> int:
        """generation/native.py: all matrices, the embedding and, apart from it, the head."""
        return self.card.product * (self.shape.matrices + 2 * self.shape.embedding)

    def learning(self, each: tuple[RowTokens, RowTokens]) -> dict[str, Parts]:
        """The backward pass as it begins, all activations alive and no gradient yet, and as it ends, all gradients there and no activation
        left."""
        count, several = sum(self.held.values()), self.at_once(each[0])[1] > 1
        networks = len(self.learns)  # of PPO two, in one graph
        kept, copies, heads = [], [], []
        for rows in each:
            rows_at_once, _ = self.at_once(rows)
            tokens, answers = rows_at_once * rows.tokens, rows_at_once * rows.answers * rows.answer
            kept.append(networks * self.activations(tokens, answers / tokens) + self.reading(tokens))
            copies.append(networks * self.joined())
            heads.append(0.0 if self.name == "reward" else self.head(answers, learns=True))
        # Before a step's last pass gradients are not added up (sharding.py: lockstep), and each rank has them whole.
        gradients = 4.0 * (sum(self.learns.values()) if several else count)
        second = self.embedding_gradient(several)
        # Where a step has one pass the last step's gradients are gone, and moments lie between the pieces of room that they left:
        # activations find place in none of them, or in all.
        left = fixed_size(gradients) if several else Range(0, gradients / 2, gradients)
        begins = {
            "gradients" if several else "room that gradients left": left,
            "activations kept for the gradient": widened(kept),
            "products' copies of weights": fixed_size(copies[0], certain=False),
            "logits and the head's gradient": widened(heads),
        }
        ends = {
            "gradients": fixed_size(gradients),
            "a second gradient of the embedding": fixed_size(second, certain=False),
        }
        if self.ranks > 1:
            largest = max(
                max(sizes) for sizes in self.groups.values()
            )  # a group's gradients, and laid out to be added up
            ends |= self.running() | {"gradients being added up": Range(0, 4 * 2 * largest, 4 * 2 * largest)}
        return {"begins the backward pass": begins | self.running(), "ends the backward pass": ends}

    def activations(self, tokens: float, answered: float) -> float:
        """What autograd keeps of a network's layers (kernels/kernels.py, each `save_for_backward`). The last layer takes the states
        that are `answered` alone, and so do the last norm and the head (models/batches.py: wanted_states)."""
        shape, e = self.shape, self.card.product
        D, F, Q, K = shape.widths
        norms = 2 * (4 + e) * D  # _Norm: the stream, float32; _Project: its normed states
        attention = float(e * (2 * Q + 2 * K) + 8 * shape.heads)  # _Attention: q, kv, the sums; o_proj: what it gives
        mlp = 3 * e * F  # _SwiGLU: gate and up; down_proj: their product
        if self.card.kind == "cuda":  # plain operations: silu(gate), turned queries and keys are kept too
            mlp, attention = mlp + e * F, attention + e * (Q + K)
        elif self.recipe.model.kernels in ("plain", "torch"):  # scores and softmax of each head
            attention += e * 2 * shape.heads * min(tokens, shape.max_positions)
        layers, one = shape.layers - 1 + answered, norms + attention + mlp
        # Run again in the backward pass (compute/recomputing.py), a layer keeps what goes in, and one at a time all else.
        kept = (4 + e) * D * layers + one if self.recipe.model.checkpoint_activations else one * layers
        return tokens * (kept + answered * (12 + e) * D)

    def joined(self) -> float:
        """kernels.py: _Project keeps the weight that it multiplied by: in bfloat16 a copy of every matrix, in float32 of those that are
        joined (k with v, gate with up). Of what is frozen no copy waits."""
        if self.adapter:
            return 0
        D, F, _, K = self.shape.widths
        layer = 2 * self.shape.matrices / self.shape.layers if self.card.product == 2 else 4 * 2 * D * (K + F)
        return layer * (1 if self.recipe.model.checkpoint_activations else self.shape.layers)

    def reading(self, tokens: float) -> float:
        """A layer at work, forward or backward: the stream, its normed states, gate, up and their product, and its joined weights."""
        shape, e = self.shape, self.card.product
        D, F, Q, K = shape.widths
        widest = max(3 * F, 2 * Q + 2 * K)
        unpacked = 2 * 2 * D * F if self.four_bits else 0  # before they are joined
        return tokens * ((8 + 2 * e) * D + e * widest) + e * 2 * D * F + unpacked

    def head(self, answers: float, learns: bool = False) -> float:
        """maths/logprobs.py: a slice of logits at a time, or all where they are few; in bfloat16 a copy of the head's weight; for the
        gradient the head's own in float32 with a slice's share of it."""
        e, V = self.card.product, self.shape.vocab_size
        compiled = self.card.kind == "cpu" and self.recipe.model.kernels in ("auto", "compiled")
        slices = max(64 * V, 2**22 if compiled else 2**19) * (e if compiled else e + 8)
        states = answers * self.shape.hidden_size * (4 + e)
        copy = e * self.shape.embedding if e == 2 and not (self.adapter and self.frozen_bytes == 2) else 0
        if not learns:
            return slices + states + copy
        kept = float(e) * answers * V if compiled and answers * V <= 2**24 else slices
        shares = 1 if answers * V <= (2**22 if compiled else 2**19) else 2
        gradient = 0 if self.adapter else self.shape.embedding * (4 * shares + (e if e == 2 else 0))
        return kept + states + copy + gradient

    def embedding_gradient(self, several: bool) -> float:
        """A tied embedding has two gradients, of the head and of the tokens; they meet where the backward pass ends. A pass that is not
        the step's first adds to what is there."""
        if self.adapter or not self.shape.tied or self.name == "reward":
            return 0
        return 4.0 * self.shape.embedding * (2 if several else 1)

    def answering(self, each: tuple[RowTokens, RowTokens]) -> Parts:
        """Keys and values of the rows under way, their logits, the prompts as they are read."""
        shape, e = self.shape, self.card.product
        rows_at_once = min(ANSWERED, self.prompts * self.answers if self.practises else 128)
        cache, drawn = [], []
        for rows in each:
            slots = rows.prompt + max(rows.answer, AHEAD)
            cache.append(e * rows_at_once * slots * 2 * shape.kv_heads * shape.head_size * shape.layers)
            drawn.append(self.reading(rows_at_once * rows.prompt) + 4 * rows_at_once * shape.vocab_size)
        return {"keys and values": widened(cache), "prompts being read, logits": widened(drawn)}

    def awake(self, each: tuple[RowTokens, RowTokens]) -> Parts:
        """A server on the same card while it answers (generation/endpoint.py), its matrices held as the policy's base is; nothing where
        it has a card of its own."""
        section, shape = self.recipe.rollout, self.shape
        if not section.sleeps:
            return {}
        base = self.frozen(shape.whole) + CONSTANTS * shape.matrices if self.four_bits else 2 * shape.whole
        slots = (
            4 * shape.kv_heads * shape.head_size * shape.layers * min(section.concurrency, self.prompts * self.answers)
        )
        return self.asleep | {
            "server awake: weights": fixed_size(base, certain=False),
            "server awake: the adapter": fixed_size(2 * self.adapter, certain=False),
            "server awake: keys and values": widened([slots * (rows.prompt + rows.answer) for rows in each]),
        }

    @property
    def asleep(self) -> Parts:
        """Of its weights, keys and values nothing stays on the card at the first level of sleep."""
        return {
            "server: CUDA and libraries": fixed_size(FRAME["cuda"] * GIB * self.recipe.rollout.sleeps, certain=False)
        }

    def updates(self) -> float:
        """compute/optimizer.py: Muon: an update of every matrix, and those of one shape stacked, in products' precision thrice."""
        largest = max(
            3 * inputs * outputs for name, (inputs, outputs) in self.shape.maps.items() if name == "gate_proj"
        )
        return 4.0 * self.shape.matrices + self.shape.layers * largest * (8 + 3 * self.card.product)

    # ------------------------------------------------------------------------------- how often ranks meet (traffic.py)

    @property
    def optimizer_steps(self) -> float:
        """Optimiser steps in a step of the loop, which practises is a rollout's."""
        if not self.practises:
            return 1
        if self.name in ("rejection", "dpo"):  # of a prompt's answers one row is learnt
            return self.setting("epochs", 1) * max(1, math.ceil(self.prompts / self.section.batch_size))
        return self.setting("epochs", 1) * self.setting("minibatches", 1)

    @property
    def networks_read(self) -> int:
        """How many of those that learn are read without a gradient in a step (training/ppo.py: estimate; rollout.py: reread)."""
        return {"ppo": len(self.learns), "rloo": 1, "rebel": 1, "rejection": 1}.get(self.name, 0)

    def read_passes(self, rows: RowTokens) -> int:
        """Passes of a rank to read a rollout so."""
        if not self.networks_read:
            return 0
        whole = rows.prompt + rows.answer
        size = self.bounded(max(1, self.section.batch_size // self.answers) * self.answers * whole, rows) / whole
        return math.ceil(math.ceil(self.prompts * self.answers / size - 1e-9) / self.gpus)

    @property
    def tensors(self) -> list[range]:
        """The weights that learn, one by one, of each network: norms within heads are left out."""
        around = 2 if self.shape.tied else 3
        each = 2 * self.shape.layers * len(self.shape.maps) if self.adapter else 9 * self.shape.layers
        return [range(each + (0 if self.adapter else around if name == "policy" else 2)) for name in self.learns]

    @property
    def filled_groups(self) -> tuple[float, float]:
        """Numbers of all layers and of what is beside them, of all networks, filled up to pieces of one size."""
        n, sizes = self.ranks, self.held
        around = 0.0 if self.adapter else n * math.ceil(self.shape.vocab_size / n) * self.shape.hidden_size
        rest = sum(around * (2 if name == "policy" and not self.shape.tied else 1) for name in sizes)
        return n * sum(sizes.values()) - rest, rest

    # -------------------------------------------------------------------------------------------------------- time

    def steps_in_all(self, rows: RowTokens) -> float:
        """Of the loop, over the whole run."""
        if self.name == "pretrain":
            return self.recipe.data.pretrain_tokens / (self.section.batch_size * self.setting("length"))
        if self.practises:
            return next(filter(None, map(self.setting, ("steps", "rounds", "online_rounds"))), 1)
        return math.ceil(self.setting("epochs", 1) * (self.data_rows or UNSAID_ROWS) / self.section.batch_size)

    @property
    def rows_known(self) -> bool:
        return self.practises or self.name == "pretrain" or self.data_rows > 0

    @property
    def data_rows(self) -> int:
        data = self.recipe.data
        return data.demonstrations if self.name in ("sft", "constitution") else data.train_prompts

    def tokens_in_all(self, rows: RowTokens) -> dict[str, float]:
        """Tokens that are learnt from, that are read without a gradient, and that are drawn, over the whole run."""
        if self.name == "pretrain":
            return {"learnt": float(self.recipe.data.pretrain_tokens)}
        epochs = self.setting("epochs", 1)
        if not self.practises:
            learnt = epochs * (self.data_rows or UNSAID_ROWS) * rows.tokens
            held = self.name in ("dpo", "kto") and dict(self.section).get("loss") not in NO_REFERENCE
            return {"learnt": learnt, "read": learnt / epochs if held else 0.0}
        steps = next(filter(None, map(self.setting, ("steps", "rounds", "online_rounds"))), 1)
        answered = steps * self.prompts * self.answers
        whole = answered * (rows.prompt + rows.answer)
        kept = whole / (self.answers if self.name == "rejection" else 1)
        readers = 2 + (dict(self.section)["scored_by"] == "reward")  # policy, reference, reward model
        return {"learnt": epochs * kept, "read": readers * whole, "drawn": whole}

    def operations(self, tokens: Mapping[str, float], rows: RowTokens) -> float:
        """Two for a weight and a token forward, four backward, of which a frozen base needs two; two more for layers that are run again;
        attention by half the row's square."""
        shape = self.shape
        seen = (rows.prompt + rows.answer) / 2
        forward = 2.0 * (shape.matrices + shape.embedding * (self.name != "reward"))
        forward += 4 * shape.layers * shape.heads * shape.head_size * seen
        passes = (2 if self.adapter else 3) + self.recipe.model.checkpoint_activations
        learnt = tokens.get("learnt", 0.0) * len(self.learns) * passes
        return forward * (learnt + tokens.get("read", 0.0) + tokens.get("drawn", 0.0))


def widened(sizes: Sequence[float]) -> Range:
    """What grows with the rows, of usual and of long ones: nothing of it is certain, and an allocator leaves gaps between."""
    usual, most = sizes
    return Range(0, usual, GAPS * most)
