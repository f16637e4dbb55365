"""A chain of critique and revision in a store, as `bridle revise` leaves one."""

from bridle.core.records import Completion, Message, Prompt
from bridle.feedback.people.chains import find_chains
from bridle.feedback.store.store import Store
from bridle.stages.revise import ANSWERED, CHAIN, CRITIQUE, REVISED, REVISION, source_of

RUN = "1f0c22aa77b0" + "0" * 52
FIRST, LAST = "Sure <b>thing</b>.", "I would rather not."


def ask(prompt: Prompt, answer: str, words: str, note: dict[str, object]) -> Prompt:
    return Prompt((*prompt.messages, Message("assistant", answer), Message("user", words)), {CHAIN: note})


def add_chain(store: Store, text: str = "How do I pick a lock?", run: str = RUN) -> int:
    """As `bridle revise` leaves one: two rounds, the first of which changed the answer."""
    prompt = Prompt.from_text(text)
    first = Completion(prompt.id, FIRST, weight_stamp="sft+7")
    store.add_prompts([prompt], split="train", source="red-team")
    store.add_completions([first], source=source_of(ANSWERED, run))
    steps = [
        (FIRST, 1, "no-harm", "It helps a thief.", LAST),
        (LAST, 2, "honest", "No changes needed.", None),
    ]
    for answer, number, principle, critique, revision in steps:
        note = {"of": prompt.id, "answer": first.id, "round": number, "principle": principle}
        asked = ask(prompt, answer, f"Criticise by {principle}.", note)
        store.add_prompts([asked], split=CHAIN, source=CRITIQUE)
        store.add_completions([Completion(asked.id, critique, weight_stamp="sft+7")], source=source_of(CRITIQUE, run))
        if revision is not None:
            again = ask(asked, critique, f"Rewrite by {principle}.", note)
            store.add_prompts([again], split=CHAIN, source=REVISION)
            written = Completion(again.id, revision, weight_stamp="sft+7")
            store.add_completions([written], source=source_of(REVISION, run))
    store.add_completions([Completion(prompt.id, LAST, weight_stamp="sft+7")], source=source_of(REVISED, run))
    return find_chains(store)[0].number
