"""A reward model as a reward: centred, scaled, and the same in any batch; another tokenizer's, by text; several, as one."""

import math
from collections.abc import Sequence

import pytest
import torch

from bridle.compute.device import Device
from bridle.core.errors import ModelError
from bridle.core.records import Completion, Message, Prompt
from bridle.models.encoding import prompts_that_fit
from bridle.models.files.new_tokenizer import train_tokenizer
from bridle.models.policy import RewardModel, Task
from bridle.models.scorer import scorer_from
from bridle.models.template import Template
from bridle.rewards.learned import Combine, Ensemble, LearnedReward, combined, task_scores
from tests.models.tiny import CPU, TEXTS, one_sentence, policy, random_ids, template

DEVICE = Device(CPU, torch.float32, 1, "test")


def model(centre: float = 0.0, scale: float = 1.0) -> RewardModel:
    scorer = scorer_from(policy().module, torch.Generator().manual_seed(0))
    return RewardModel(scorer, template(), "made", [Task(centre=centre, scale=scale)])


def test_scores_come_back_in_order_and_do_not_depend_on_company() -> None:
    ours = model()
    prompts, answers = random_ids(150, 1, 30, seed=1), random_ids(150, 1, 30, seed=2)
    found = task_scores(ours, prompts, answers, DEVICE)[:, 0]
    for i in range(0, 150, 13):
        alone = task_scores(ours, prompts[i : i + 1], answers[i : i + 1], DEVICE)[:, 0]
        assert float(found[i]) == pytest.approx(float(alone[0]), abs=1e-5)


def test_equal_answers_to_a_prompt_are_scored_once_and_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they stand: a row's last digits may depend on its place in a batch, here all of them do."""
    ours, read = model(), list[int]()

    def by_place(ids_BT: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        read.append(len(ids_BT))
        return (ids_BT[:, 0] + torch.arange(len(ids_BT)) / 1000)[:, None]

    monkeypatch.setattr(ours.module, "task_scores", by_place)
    prompts = [[3, 4], [3, 4], [4, 4], [3, 4], [4, 4]] * 60
    answers = [[7, 8], [7, 9], [7, 8], [7, 8], [7, 8]] * 60
    found = task_scores(ours, prompts, answers, DEVICE)[:, 0].tolist()
    assert read == [3] and len(set(found)) == 3
    assert found == found[:5] * 60 and found[0] == found[3] and found[2] == found[4]
    assert [int(score) for score in found[:3]] == [3, 3, 4]


def test_a_reward_is_in_deviations_of_the_references_answers() -> None:
    prompts = [Prompt.from_text("Hi"), Prompt.from_text("My cat is bored.")]
    completions = [Completion(p.id, "Play with it.") for p in prompts]
    raw = LearnedReward(model(), DEVICE, same_tokens=False)(prompts, completions)
    scaled = LearnedReward(model(0.5, 2.0), DEVICE, same_tokens=False)(prompts, completions)
    assert scaled == pytest.approx([(float(r or 0) - 0.5) / 2 for r in raw])


def test_ids_are_read_as_they_are_where_they_are_of_this_tokenizer() -> None:
    prompt = Prompt.from_text("Hi")
    reward = LearnedReward(model(), DEVICE, same_tokens=True)
    cut = Completion(prompt.id, "Play", token_ids=(50, 60))  # cut off: no stop, and none is added
    assert reward.ids([prompt], [cut])[1] == [[50, 60]]
    written = Completion(prompt.id, "Play")
    assert reward.ids([prompt], [written])[1] == template().completion_ids([prompt], ["Play"])
    assert reward.ids([prompt, prompt], [cut, written])[1] == template().completion_ids([prompt] * 2, ["Play"] * 2)
    other = LearnedReward(model(), DEVICE, same_tokens=False)
    assert other.ids([prompt], [cut])[1] == template().completion_ids([prompt], ["Play"])


def test_a_reward_model_of_another_tokenizer_reads_the_text() -> None:
    """The ids of the policy mean nothing to it: what it scores is what its own ids of the text score."""
    other = train_tokenizer([text.upper() for text in TEXTS], 280)
    ours = RewardModel(scorer_from(policy("gpt2").module, torch.Generator().manual_seed(0)), other, "made")
    prompt = Prompt.from_text("My cat is bored.")
    written = Completion(prompt.id, "Play.", token_ids=tuple(template().completion_ids([prompt], ["Play."])[0]))
    own = other.completion_ids([prompt], ["Play."])[0]
    assert list(written.token_ids) != own
    (found,) = LearnedReward(ours, DEVICE, same_tokens=False)([prompt], [written])
    expected = task_scores(ours, other.prompt_ids([prompt]), [own], DEVICE)[:, 0]
    assert found == pytest.approx(float(expected[0]), abs=1e-5)


def test_another_template_reads_a_prompt_once_however_often_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers it reads each time; where the prompts carry what its own template wrote, it renders none."""
    render, asked = Template.render, list[str]()

    def counted(self: Template, messages: Sequence[Message], *, answer_next: bool) -> str:
        asked.extend(message.content for message in messages[-1:] if answer_next)
        return render(self, messages, answer_next=answer_next)

    other = train_tokenizer([text.upper() for text in TEXTS], 280)
    ours = RewardModel(scorer_from(policy("gpt2").module, torch.Generator().manual_seed(0)), other, "made")
    prompts, _ = prompts_that_fit(template(), [Prompt.from_text(text) for text in ("Hi", "Rain?")], 20, 96)
    rows = [prompts[0], prompts[1], prompts[0], prompts[1]]
    calls = [[Completion(p.id, f"{word} {i}.") for i, p in enumerate(rows)] for word in ("Play", "No")]
    expected = [(other.prompt_ids(rows), other.completion_ids(rows, [c.text for c in call])) for call in calls]
    monkeypatch.setattr(Template, "render", counted)
    reward = LearnedReward(ours, DEVICE, same_tokens=False)
    assert [reward.ids(rows, call) for call in calls] == expected and asked == ["Hi", "Rain?"]
    same = LearnedReward(model(), DEVICE, same_tokens=True)
    assert same.ids(rows, calls[0])[0] == template().prompt_ids(rows) and asked == ["Hi", "Rain?"] and not same.known


def test_a_task_is_scored_by_its_own_row_and_centre() -> None:
    scorer = scorer_from(policy().module, torch.Generator().manual_seed(0), 2)
    tasks = [Task("good", centre=1.0, scale=2.0), Task("toxic", "binary", centre=-1.0, scale=4.0, temperature=3.0)]
    ours, prompt = RewardModel(scorer, template(), "made", tasks), Prompt.from_text("Hi")
    completions = [Completion(prompt.id, text) for text in ("Play with it.", "No.")]
    good, toxic = (LearnedReward(ours, DEVICE, False, task) for task in ("good", "toxic"))
    assert LearnedReward(ours, DEVICE, False)([prompt] * 2, completions) == good([prompt] * 2, completions)
    raw = toxic.raw([prompt] * 2, completions)
    assert raw.tolist() != good.raw([prompt] * 2, completions).tolist()
    assert toxic([prompt] * 2, completions) == pytest.approx([(float(x) + 1) / 4 for x in raw])
    chances = toxic.probabilities([prompt] * 2, completions)
    assert chances == pytest.approx([1 / (1 + math.exp(-float(x) / 3)) for x in raw])
    with pytest.raises(ModelError, match="no task 'kind'; it judges by good, toxic") as caught:
        LearnedReward(ours, DEVICE, False, "kind")
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize(
    ("combine", "expected"), [("mean", [2.0, 1.0]), ("min", [1.0, 1.0]), ("uwo", [2.0 - 0.5 * 2 / 3, 1.0])]
)
def test_an_ensemble_by_hand(combine: Combine, expected: list[float]) -> None:
    """The variance is over the members, divided by their number."""
    scores = torch.tensor([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]], dtype=torch.float64)
    assert combined(scores, combine, 0.5).tolist() == pytest.approx(expected)


def test_an_ensemble_tells_how_far_its_members_disagree() -> None:
    members = []
    for seed in range(3):
        scorer = scorer_from(policy().module, torch.Generator().manual_seed(seed))
        members.append(LearnedReward(RewardModel(scorer, template(), "made"), DEVICE, False))
    prompt = Prompt.from_text("Hi")
    completions = [Completion(prompt.id, text) for text in ("Play with it.", "No.", "The rain.")]
    each = torch.tensor([member([prompt] * 3, completions) for member in members])
    ensemble = Ensemble(members, "uwo", 0.1)
    found = ensemble([prompt] * 3, completions)
    assert list(found) == pytest.approx((each.mean(0) - 0.1 * each.var(0, correction=0)).tolist(), abs=1e-5)
    assert found.metrics == {"disagreement": pytest.approx(float(each.std(0, correction=0).mean()), abs=1e-5)}
    assert vars(ensemble) == {"members": members, "combine": "uwo", "uncertainty": 0.1}, "it keeps nothing of a call"
