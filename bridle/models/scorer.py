"""A language model's trunk with a linear head: a reward model reads the last token, a critic every token.

A reward model has a row of the head, a number, for each task C that it judges by; the critic uses the first row alone.
Saved as Hugging Face's `…ForSequenceClassification` (one logit a task) with `bridle_reward.json` beside it.
"""

import torch
from torch import Tensor, nn

from bridle.models.batches import Batch, answer_states, last_states, spread
from bridle.models.decoder import Trunk
from bridle.models.foreign import ForeignTrunk, LanguageModel
from bridle.models.lora.adapter import adapt, branch
from bridle.models.lora.low_rank import is_adapted
from bridle.recipe.data import LoRASection


class Scorer(nn.Module):
    """`model` is the trunk, native or of transformers, `score.weight` [C, D] the head."""

    def __init__(self, trunk: Trunk | ForeignTrunk, tasks: int = 1) -> None:
        super().__init__()
        self.config = trunk.config
        self.model = trunk
        self.score = nn.Linear(trunk.config.hidden_size, tasks, bias=False)

    def hidden(self, ids_BT: Tensor, *layout: Tensor | None) -> Tensor:
        """The trunk's states, as of a language model."""
        return self.model(ids_BT, *layout)

    def values(self, ids_BT: Tensor) -> Tensor:
        """A number at every position by the first row, [B, T], in float32 or wider."""
        hidden = self.hidden(ids_BT)
        return self._row(hidden, 0)

    def scores(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """The first row's number at each sequence's last real token, [B]."""
        return self.task_scores(ids_BT, lengths_B)[:, 0]

    def task_scores(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Every row's number at each sequence's last real token, [B, C]. Lengths say where that is; ids are not looked at."""
        hidden_BTD = self.hidden(ids_BT)
        last_BD = hidden_BTD[torch.arange(len(lengths_B), device=ids_BT.device), lengths_B - 1]
        return self.by_task(last_BD)

    def batch_scores(self, batch: Batch) -> Tensor:
        """The same of a batch, [B, C], in which a prompt that several answers share is read once."""
        return self.by_task(last_states(self, batch))

    def batch_values(self, batch: Batch) -> Tensor:
        """The first row's number before each of the answers' tokens, [B, T], zero off the mask."""
        return spread(self._row(answer_states(self, batch), 0), batch.mask_BT)

    def of_states(self, hidden: Tensor) -> Tensor:
        """The first row's number at each of the trunk's hidden states [..., D], for a critic whose trunk is the policy's own."""
        return self._row(hidden, 0)

    def by_task(self, hidden: Tensor) -> Tensor:
        """Every row's number at each of the trunk's hidden states [..., D], [..., C]."""
        return torch.stack([self._row(hidden, row) for row in range(len(self.score.weight))], -1)

    def _row(self, hidden: Tensor, row: int) -> Tensor:
        # The head is a few rows: full precision costs nothing there, and a score's last digits matter to whoever compares.
        weight = self.score.weight
        with torch.autocast(hidden.device.type, enabled=False):
            return (hidden.to(weight.dtype) * weight[row]).sum(-1)


def scorer_from(policy: LanguageModel, generator: torch.Generator, tasks: int = 1) -> Scorer:
    """A scorer on a copy of a language model's trunk (of one with an adapter on its base), with a new head."""
    return scorer_on(branch(policy.model), generator, tasks)


def scorer_on(trunk: Trunk | ForeignTrunk, generator: torch.Generator, tasks: int = 1) -> Scorer:
    """A scorer on this trunk; head normal with std 1/√(D+1) (Ouyang 2022's released code)."""
    scorer = Scorer(trunk, tasks)
    init_head(scorer, generator)
    return scorer.to(next(trunk.parameters()).device)


def init_head(scorer: Scorer, generator: torch.Generator) -> None:
    std = (scorer.config.hidden_size + 1) ** -0.5
    with torch.no_grad():
        scorer.score.weight.normal_(0.0, std, generator=generator)


def critic_from(scorer: Scorer, config: LoRASection | None = None, generator: torch.Generator | None = None) -> Scorer:
    """A critic on a copy of the reward model's trunk; one that learns by an adapter, of these settings, on its weights themselves."""
    if config is None or generator is None or is_adapted(scorer.model):
        return critic_on(branch(scorer.model))
    return critic_on(adapt(scorer.model, config, generator))


def critic_on(trunk: Trunk | ForeignTrunk) -> Scorer:
    """This trunk with a zero head of one row: a critic that first predicts 0, the mean of a centred reward."""
    critic = Scorer(trunk)
    weight = next(trunk.parameters())
    critic.score.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
    nn.init.zeros_(critic.score.weight)
    return critic


def shared_critic(policy: LanguageModel) -> Scorer:
    """A critic on the policy's own trunk, not a copy: a zero head, beside the one that predicts tokens."""
    return critic_on(policy.model)
