"""PPO with a reward model and a critic of its own: python benchmarks/ppo.py [--quick]"""

from __future__ import annotations

from typing import Any

import peer
from harness import MODEL, MODELS, SIZE, Contestant, Stage, Trial, main
from texts import ANSWER, PROMPT, prompts

ANSWERS, EPOCHS = 64, 4


def bridle(trial: Trial) -> None:
    import bridle

    bridle.ppo(
        bridle.load(MODELS / MODEL), prompts(ANSWERS * trial.steps), bridle.load_reward(MODELS / f"{MODEL}-reward"),
        max_new_tokens=ANSWER, steps=trial.steps, prompts_per_step=ANSWERS, epochs=EPOCHS, minibatches=1, batch_size=ANSWERS,
        learning_rate=1e-6, critic_learning_rate=1e-6, kl_coef=0.05, on_log=trial.on_log,
    )  # fmt: skip


def trl(trial: Trial, chosen: dict[str, Any], fast: bool) -> None:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokens = peer.tokenizer(MODEL, "left")
    left_out = ("max_steps", "lr_scheduler_type")  # PPO counts episodes
    settings = {name: value for name, value in peer.common(trial, ANSWERS).items() if name not in left_out}
    config = PPOConfig(**{
        **settings, "total_episodes": ANSWERS * trial.steps, "gradient_accumulation_steps": 1, "num_mini_batches": 1,
        "num_ppo_epochs": EPOCHS, "response_length": ANSWER, "local_rollout_forward_batch_size": ANSWERS, "kl_coef": 0.05,
        "temperature": 1.0, "learning_rate": 1e-6, "num_sample_generations": 0, **chosen,
    })  # fmt: skip
    trainer = PPOTrainer(
        args=config, processing_class=tokens, model=peer.language_model(MODEL, fast), ref_model=peer.language_model(MODEL, fast),
        reward_model=peer.reward_model(MODEL, fast), value_model=peer.reward_model(MODEL, fast),
        train_dataset=peer.rows(input_ids=tokens(prompts(ANSWERS * trial.steps))["input_ids"]),
    )  # fmt: skip
    peer.train(trainer, trial)


if __name__ == "__main__":
    main(
        Stage(
            "ppo",
            f"{ANSWERS} answers of {PROMPT} + {ANSWER} tokens, {EPOCHS} epochs of one minibatch, {SIZE} parameters each",
            [Contestant("bridle", bridle), *peer.contestants(trl, "trl-ppo")],
            steps=3,
            quick_steps=2,
            rounds=2,
            models=(MODEL, f"{MODEL}-reward"),
            tokens={"": ANSWERS * ANSWER},
        )
    )
