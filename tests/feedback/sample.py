"""A little of everything that goes into a store."""

from bridle.core.records import Completion, FinishReason, Judgement, LabelerKind, Prompt
from bridle.feedback.store.store import Store


class Sample:
    """Five prompts with four sampled answers each, and one ranking of each four."""

    prompts = [Prompt.from_text(f"Question {n}?", meta={"family": "help", "n": n}) for n in range(5)]
    groups = [
        [
            Completion(
                prompt_id=prompt.id,
                text=f"Answer {slot} — 回答",
                token_ids=(7 * slot, 11, 1),
                sampled_logprobs=(-0.1 * (slot + 1), -1 / 3, -1e-300),
                finish_reason=FinishReason.STOP,
                weight_stamp="sft+0",
                sampling={"temperature": 1.0, "seed": slot},
            )
            for slot in range(4)
        ]
        for prompt in prompts
    ]

    def fill(self, store: Store) -> list[str]:
        store.add_prompts(self.prompts, split="train", source="world")
        store.add_completions([answer for group in self.groups for answer in group], source="sample")
        return store.add_items(self.groups, study="first")

    def judgement(self, item: str, key: str, labeler: str = "sim-1", best: int = 2) -> Judgement:
        rest = [slot for slot in range(4) if slot != best]
        return Judgement(
            item_id=item,
            labeler=labeler,
            labeler_kind=LabelerKind.SIMULATED,
            ranking=((best,), (rest[0], rest[1]), (rest[2],)),
            display_order=(3, 0, 2, 1),
            submission_key=key,
            seconds=1.25,
        )
