"""Floor 9: bridle from Python. A model, your data, a reward function of your own; each trainer is one function.

    import bridle
    model = bridle.load("path/to/model")  # or bridle.load(model, tokenizer), objects of transformers
    bridle.sft(model, [("My cat is bored.", "Play with it."), ...], epochs=1)
    bridle.ppo(model, prompts, reward=lambda prompts, answers: [...], kl_coef=0.1, on_log=print)
    model.answer(["My dog is bored."])

What all trainers here share:

- They train the model in place. One that fails or is stopped leaves the model as it was before.
- A prompt is text, or messages (`{"role": …, "content": …}`) that end with the user's. Answers are text. Tuples of them, or rows by
  columns, as a `datasets.Dataset` gives them.
- Settings are those of the recipe's section of the same name, by keyword, as `help` lists them; `seed` decides every random number.
- With `folder`, metrics and checkpoints are kept there, and the same call again resumes where it stopped, or restores what was
  finished. It must be the same call: other settings, data or another model are refused. A reward function cannot be compared.
- `on_log(step, total, metrics)` is called for every line of metrics.jsonl. If it raises, that step is saved first, in
  `folder` where there is one; then its exception comes through. What `tensorboard` and `wandb` give raises nothing.
"""

from bridle.api.models import Model, ScoreModel, load, load_reward
from bridle.api.rows import mixture
from bridle.api.runs import tensorboard, wandb
from bridle.api.trainers import (
    best_of_n,
    dpo,
    grpo,
    kto,
    online_dpo,
    orpo,
    ppo,
    pretrain,
    rebel,
    reward_model,
    rloo,
    sft,
    tune,
    verifier,
)

__all__ = [
    "Model", "ScoreModel", "best_of_n", "dpo", "grpo", "kto", "load", "load_reward", "mixture", "online_dpo", "orpo", "ppo",
    "pretrain", "rebel", "reward_model", "rloo", "sft", "tensorboard", "tune", "verifier", "wandb",
]  # fmt: skip
