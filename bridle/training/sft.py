"""Supervised fine-tuning: imitate demonstrations, next-token prediction on the answers alone (Ouyang 2022, §3.5).

The prompt is read but not learnt; the stop token is part of the answer and is learnt.
The step itself, one forward and backward, is `models.imitation.imitate`.
"""

from collections.abc import Sequence

from bridle.compute.steps import Metrics, Session, Steps
from bridle.core.errors import NoUsableRows
from bridle.models.batches import Cut, length_plan
from bridle.models.imitation import Example, imitate
from bridle.models.policy import Policy
from bridle.project.run import Signal
from bridle.recipe.constitution import ConstitutionSection
from bridle.recipe.offline import SFTSection

LOGGED_EVERY, REMEMBERED = 5, 50  # steps: between lines of the log; whose losses the mean at the end is of


def train(
    policy: Policy, examples: Sequence[Example], config: SFTSection | ConstitutionSection, session: Session
) -> Metrics:
    """Train `policy` in place."""
    if not examples:
        raise NoUsableRows("SFT needs demonstrations, got none; import answers or lower the filters")
    lengths = [len(prompt) + len(answer) for prompt, answer in examples]
    plan = length_plan(lengths, config.batch_size, config.epochs, session.seed, "sft")
    steps = Steps.of_policy(policy.module, config, len(plan), session)
    cut = Cut(config.micro_batch, config.micro_tokens)
    losses: list[float] = steps.values.setdefault("last_losses", [])
    for step in steps:
        # 1. a batch of demonstrations
        chosen = [examples[i] for i in plan[step]]
        # 2. predict the answers' tokens
        losses.append(imitate(policy, chosen, session.device, cut))
        # 3. improve
        norm = steps.scheduled_step(step, config.clip_norm)
        # 4. log and save
        del losses[:-REMEMBERED]
        means = {"loss": losses[-1], "loss_average": sum(losses) / len(losses)}
        logged = step % LOGGED_EVERY == 0 or step == len(plan) - 1
        log = {"loss": losses[-1], "grad_norm": norm} if logged else {}
        steps.end(step, means, -means["loss_average"], Signal(grad_norm=norm), log)
    policy.step += len(plan)
    tokens = config.epochs * sum(len(answer) for _, answer in examples)
    return {"steps": len(plan), "answer_tokens": tokens, **steps.metrics}
