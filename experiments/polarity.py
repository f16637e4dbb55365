"""A classifier from `{prompt, response, label}` rows beside naive Bayes: python -m experiments.polarity FOLDER [--model MODEL]

    python -m experiments.polarity polarity --model SmolLM2-135M-Instruct.Q4_1.gguf --rows 1500 --held-out 600

Sentences of film reviews, 5,331 that praise and 5,331 that do not (Pang and Lee 2005), read from BRIDLE_DATA. The first words of a sentence
are the prompt, the rest the response; a prompt's hash decides whether it is held out. `bridle train reward --task positive` learns from N
of the training rows (0: all), naive Bayes from all of them: words and pairs of neighbours, presence in a sentence, one added to each
count. Both are tested on the same held-out rows (0: all). Without --model a small model is trained from nothing, on the sentences first.
Writes FOLDER/polarity.json.
"""

import argparse
import json
import math
import os
import random
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from bridle.cli.main import main as bridle
from bridle.core.files import write_json
from bridle.core.records import Prompt
from bridle.feedback.store.nearness import split_key
from bridle.feedback.store.store import split_of
from bridle.maths.statistics import proportion

HELD_OUT, FIRST_WORDS = 0.1, 3
Row = dict[str, Any]


def sentences() -> list[Row]:
    """The rows of both files, latin-1, in an order of chance that is always the same; equal ones once."""
    path = Path(os.environ["BRIDLE_DATA"]) / "sentence-polarity/sentence_polarity.zip"
    rows: dict[str, Row] = {}
    with zipfile.ZipFile(path) as packed:
        for label, name in enumerate(("neg", "pos")):
            for line in packed.read(f"sentence_polarity/rt-polarity.{name}").decode("latin-1").splitlines():
                words = line.split()
                if len(words) > FIRST_WORDS:
                    begun, rest = " ".join(words[:FIRST_WORDS]), " ".join(words[FIRST_WORDS:])
                    rows[line] = {"prompt": begun, "response": rest, "label": label}
    mixed = list(rows.values())
    random.Random(0).shuffle(mixed)
    return mixed


def held_out(row: Row) -> bool:
    return split_of(split_key(Prompt.from_text(row["prompt"])), HELD_OUT) == "heldout"


def features(row: Row) -> set[str]:
    words = f"{row['prompt']} {row['response']}".split()
    return {*words, *(" ".join(pair) for pair in zip(words, words[1:], strict=False))}


def naive_bayes(train: Sequence[Row], test: Sequence[Row]) -> list[bool]:
    """Whether each test row is told right (Wang and Manning 2012's multinomial, of presence)."""
    counts = (Counter[str](), Counter[str]())
    for row in train:
        counts[row["label"]].update(features(row))
    known = {*counts[0], *counts[1]}
    totals = [count.total() + len(known) for count in counts]
    told = []
    for row in test:
        odds = [
            sum(math.log((count[f] + 1) / total) for f in features(row) & known)
            for count, total in zip(counts, totals, strict=True)
        ]
        told.append((odds[1] > odds[0]) == bool(row["label"]))
    return told


def run(*words: object) -> str:
    found = CliRunner().invoke(bridle, [str(word) for word in words])
    if found.exit_code:
        raise SystemExit(found.stderr)
    return found.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="")
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--held-out", type=int, default=0)
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    rows = sentences()
    train, test = [row for row in rows if not held_out(row)], [row for row in rows if held_out(row)]
    test = test[: given.held_out or None]
    bayes = proportion(naive_bayes(train, test), [row["prompt"] for row in test])
    print(f"naive Bayes: {bayes.rate:.3f} ({bayes.low:.3f} to {bayes.high:.3f}) of {bayes.n}", flush=True)
    project = given.folder / "project"
    extra = [word for text in given.set for word in ("--set", text)]
    if not project.exists():
        model = ["--model", given.model] if given.model else []
        common = ["sampling.max_new_tokens=16", f"data.heldout_share={HELD_OUT}", "reward.slim=false"]
        given.folder.mkdir(parents=True, exist_ok=True)
        run("init", project, *model, *(word for text in common for word in ("--set", text)), *extra)
        lines = [json.dumps(row) for row in [*train[: given.rows or None], *test]]
        (given.folder / "rows.jsonl").write_text("\n".join(lines), "utf-8")
        run("import", given.folder / "rows.jsonl", "--project", project)
    if not given.model:
        for stage in ("pretrain", "sft"):
            run("train", stage, "--project", project, *extra)
    found = json.loads(run("train", "reward", "--task", "positive", "--project", project, "--json", *extra))
    write_json(given.folder / "polarity.json", {"bayes": bayes.rate, "training_rows": len(train), **found})
    print(
        f"the classifier: {found['class_accuracy']:.3f} ({found['class_accuracy_low']:.3f} to {found['class_accuracy_high']:.3f})"
    )


if __name__ == "__main__":
    main()
