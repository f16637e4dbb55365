"""The whole way: an owner begins and invites, two people label, one of them loses the connection, what they disagree about is decided, and
the reward model learns from exactly that."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from bridle.core.records import Completion, Prompt
from bridle.feedback.store.store import Store
from tests.tiny_project import SHAPE, done, result, settings, started

STUDY, PASSWORD = "comparisons", "a long password"
GOOD, BAD, MIDDLING = "Gladly: {}.", "No, not {}.", "Well, {}."
DISPUTED = "Question 2?"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four prompts with two answers each and one with three, to be compared; and some text to learn language from."""
    folder = tmp_path_factory.mktemp("journey")
    few = {"data.pretrain_tokens": 3_000, "data.heldout_share": 0.2, "reward.slim": False, "reward.learning_rate": 0.01}
    done("init", folder / "p", *settings({**SHAPE, **few}))
    rows = [{"prompt": f"Tell me of thing {n}.", "completion": f"Thing {n} is round and red."} for n in range(40)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done("import", folder / "texts.jsonl", "--project", folder / "p")
    with Store.open(folder / "p" / "store.sqlite") as store:
        prompts = [Prompt.from_text(f"Question {n}?") for n in range(5)]
        kinds = [(GOOD, BAD)] * 4 + [(GOOD, BAD, MIDDLING)]
        groups = [[Completion(one.id, kind.format(n)) for kind in kinds[n]] for n, one in enumerate(prompts)]
        store.add_prompts(prompts, split="train", source="test")
        store.add_completions([answer for group in groups for answer in group], source="sample")
        store.add_items(groups, study=STUDY)
    return folder / "p"


@pytest.fixture(scope="module")
def owner_link(project: Path) -> Iterator[str]:
    """`bridle label`, as an owner starts it; what it prints to begin with. Ctrl-C ends it."""
    process = started("label", "--project", project, "--port", "0")
    assert process.stdout is not None
    found, line = None, "begin"
    while found is None and line:
        found = re.search(r"http://\S+/join/\S+", line := process.stdout.readline())
    assert found is not None, process.communicate()
    yield found[0]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def joined(browser: Browser, link: str, name: str, **options: str) -> Page:
    context: BrowserContext = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
    page = context.new_page()
    page.goto(link)
    page.locator("input[name=handle]").fill(name)
    page.locator("input[name=password]").fill(PASSWORD)
    page.locator("form.stacked button").click()
    return page


def texts(page: Page) -> list[str]:
    return page.locator(".answer > .text").all_inner_texts()


def next_task(page: Page, item: str | None) -> None:
    page.locator(f"form.task[data-ready]:not([data-item='{item}']), .finished").first.wait_for()
    page.wait_for_timeout(400)  # what is pressed in the first moment of a task is left alone


def better(page: Page, taste: str) -> int:
    """The position of the answer that a person of this taste takes: everybody likes to be helped, but Mei not everywhere."""
    disputed = DISPUTED in page.locator(".prompt").inner_text() and taste == "mei"
    return next(n for n, text in enumerate(texts(page)) if text.startswith("No" if disputed else "Gladly"))


def test_from_the_owners_link_to_a_reward_model(project: Path, owner_link: str, chromium: Browser) -> None:
    address = owner_link.partition("/join/")[0]
    owner = joined(chromium, owner_link, "ida")
    expect(owner).to_have_url(f"{address}/studies")
    owner.goto(f"{address}/studies/{STUDY}/settings")
    owner.locator("input[name=overlap]").fill("2")
    owner.locator("input[name=gold_rate]").fill("0")
    owner.locator("form.card button, p.whole button").last.click()
    links = []
    for _ in range(2):
        owner.goto(f"{address}/people")
        owner.locator("form[action$='/people/invitations'] button").first.click()
        links.append(owner.locator("code.secret").inner_text())

    by_keyboard(joined(chromium, links[0], "anna", locale="en-GB"))
    by_mouse(joined(chromium, links[1], "mei", locale="zh-CN"))

    owner.goto(f"{address}/studies/{STUDY}/disagreements")
    owner.get_by_role("link", name=DISPUTED).click()
    shown = owner.locator("section.card .text").all_inner_texts()
    good = next(
        n for n, text in enumerate(t for t in shown if t.startswith(("Gladly", "No"))) if text.startswith("Gladly")
    )
    owner.locator(f"input[name=verdict][value='{-2 if good == 0 else 2}']").check(force=True)
    owner.locator("form.decision button").click()
    owner.goto(f"{address}/studies/{STUDY}")
    expect(owner.locator("dl.numbers")).to_contain_text("5")
    expect(owner.get_by_role("row", name="mei")).to_be_visible()
    with owner.expect_download() as download:
        owner.locator("a[download]").first.click()
    exported = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert len(exported) >= 7 and {"chosen", "rejected"} <= exported[0].keys()

    for stage in ("pretrain", "sft", "reward"):
        done("train", stage, "--project", project)
    trained = result(project / "runs" / "reward-0001")
    with Store.open(project / "store.sqlite") as store:
        snapshot = store.snapshot(trained["snapshot"])
        judged = store.judgements(study=STUDY)
        pairs = store.snapshot_pairs(snapshot.id)
    assert set(snapshot.judgement_ids) == {one.id for _, one in judged} and trained["judgements"] == len(judged) == 9
    assert {one.labeler for _, one in judged} == {"anna", "mei", "ida"}
    assert {one.lang for _, one in judged if one.labeler == "mei"} == {"zh"}
    assert all(one.guideline and one.display_order for _, one in judged if one.labeler != "ida")
    # The decision stands for what the two said of that item, and of every pair the better answer is the chosen one.
    assert len(pairs) == 7 and all(pair.chosen.text.startswith(("Gladly", "Well")) for pair in pairs)


def by_keyboard(page: Page) -> None:
    for _ in range(5):
        next_task(page, None)
        item, at = page.locator("form.task").get_attribute("data-item"), better(page, "anna")
        if len(texts(page)) == 2:
            page.keyboard.press("1" if at == 0 else "7")
        else:
            for text in texts(page):
                page.keyboard.press({"G": "1", "W": "2", "N": "3"}[text[0]])
            page.keyboard.press("Enter")
        next_task(page, item)
    expect(page.locator(".finished")).to_contain_text("5 tasks")


def by_mouse(page: Page) -> None:
    """In the middle the connection is gone for a while, and nothing else."""
    expect(page.locator("html")).to_have_attribute("lang", "zh")
    for number in range(5):
        next_task(page, None)
        item, at = page.locator("form.task").get_attribute("data-item"), better(page, "mei")
        page.context.set_offline(number == 2)
        if len(texts(page)) == 2:
            page.locator(f".verdict input[value='{-3 if at == 0 else 3}']").locator("xpath=..").click()
        else:
            for position, text in enumerate(texts(page)):
                page.locator(f"select[name=place_{position}]").select_option({"G": "1", "W": "2", "N": "3"}[text[0]])
            page.locator("button.send").click()
        if number == 2:
            expect(page.locator(".problem")).to_contain_text("尚未保存")
            page.context.set_offline(False)
        next_task(page, item)
    expect(page.locator(".finished")).to_contain_text("5")
