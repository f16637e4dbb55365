"""What a run left in its folder, read back: each file of its form, or a DataError that names it, what of it is wrong, and the way on."""

import json
from pathlib import Path
from typing import Any

from bridle.core.errors import DataError
from bridle.core.files import read_record, reading_fault
from bridle.core.forms import NUMBER, SECONDS, Fields, form_fault
from bridle.project.metrics import read_metrics
from bridle.project.names import is_name

SESSION_FILE = "session.json"
LABEL_PLAN_FILE = "label-plan.json"  # of a project
EARLIER_SESSION_FILE = "sitting.json"  # its name in runs of earlier versions


def name_of_a_stage(value: object) -> bool:
    return isinstance(value, str) and is_name(value)


THREADS = (range(1, 4097), None)
ARITHMETIC = {...: str}
REWARD_SOURCE = {"name": str, "kind?": str, "path?": str}
PARENTS: Fields = {
    "stage": name_of_a_stage, "threads?": THREADS, "device?": str, "arithmetic?": ARITHMETIC, "earlier_devices?": [str],
    "folders?": {...: str}, "reward_source?": [REWARD_SOURCE], "ensemble?": [(str, float)],
    "audit_calibration?": {"scale": float, "noise": float, "pairs": int, "read": int, "fault?": str},
    ...: (str, int, None),  # content hashes, mostly; experiments note numbers
}  # fmt: skip
KEYED: Fields = {"key": str, **PARENTS}  # of a run that is looked for by its key
TEXTS, MEASURED = ("model?", "snapshot?", "ended?"), ("gold?", "proxy?", "kl?", "pair_accuracy?")
AUTHORS = {"good": float, "mid": float, "bad": float}
RESULT: Fields = {
    "seconds?": SECONDS, **dict.fromkeys(TEXTS, str), **dict.fromkeys(MEASURED, NUMBER),
    "warnings?": {...: str}, "kl_reference?": {"name": str, "hash": str}, "gold_by_family?": {...: NUMBER},
    "frontier?": [{"n": int, ...: NUMBER}],
    "yardstick?": {"means": {...: AUTHORS}, "demonstrations": float},
    ...: (float, str, None, bool, list, dict),
}  # fmt: skip
COUNTED = {...: int}
DATA: Fields = {
    ...: {
        "kept": int, "rows?": int, "cut?": COUNTED, "dropped?": COUNTED, "noted?": COUNTED, "examples?": {...: str}, "notes?": [str],
    }
}  # fmt: skip
CHECKED: Fields = {"value?": float, "unread?": str}  # of an answer that was checked
ANSWER: Fields = {
    "id": str,
    "prompt?": str,
    "answer": str,
    "family?": str,
    "gold?": NUMBER,
    "proxy?": NUMBER,
    **CHECKED,
}
FORECAST = {"count": int, "accuracy": float, "low": float, "high": float, "price": NUMBER}
LABEL_PLAN: Fields = {
    "judgements": int, "measured": [{"judgements": int, "accuracy": float}], "forecast": [FORECAST], "with_100_more": FORECAST,
    "study": (str, None), ...: (float, str, None, list, dict),
}  # fmt: skip
PARTS: Fields = {...: {"seconds": SECONDS, "calls": int, "tokens?": int}}
WORKERS: Fields = {...: {"seconds": SECONDS, "parts": PARTS}}


def read_parents(run: Path, form: Fields = PARENTS) -> dict[str, Any]:
    return read_kept(run / "parents.json", form)


def read_result(run: Path) -> dict[str, Any]:
    """Of a run that is not finished nothing."""
    path = run / "result.json"
    return read_kept(path, RESULT) if path.exists() else {}


def read_data(run: Path) -> dict[str, Any]:
    """What became of the rows of a run's data, where it has any."""
    path = run / "data.json"
    return read_kept(path, DATA) if path.exists() else {}


def read_kept(path: Path, form: Fields) -> dict[str, Any]:
    try:
        return read_record(path, form)
    except DataError as error:
        raise DataError(f"{error}; put the file back, or remove {path.parent} and make that run again") from error


def read_kept_answers(run: Path) -> list[dict[str, Any]]:
    """The answers that an evaluation kept."""
    path = run / "answers.jsonl"
    mend = f"put the file back, or remove {run} and evaluate again"
    if not path.exists():
        raise DataError(f"{path} does not exist; {mend}")
    found = []
    with open(path, encoding="utf-8") as file:  # not splitlines: an answer may hold U+2028
        try:
            for number, line in enumerate(file, start=1):
                found.append(json.loads(line))
                if fault := form_fault(found[-1], ANSWER):
                    raise DataError(f"{path} is damaged in line {number:,}: {fault}; {mend}")
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is damaged ({reading_fault(error)}); {mend}") from error
    return found


def read_label_plan(project: Path) -> dict[str, Any] | None:
    """What the last `bridle label plan` of a project found; None before the first one."""
    path = project / LABEL_PLAN_FILE
    if not path.exists():
        return None
    try:
        return read_record(path, LABEL_PLAN)
    except DataError as error:
        raise DataError(f"{error}; remove it, and `bridle label plan` writes it anew") from error


def read_session(run: Path) -> dict[str, Any]:
    """What a run noted of its time: `seconds`, `parts` by name, and of several who shared it the same of each; nothing before its first
    save."""
    for name in (SESSION_FILE, EARLIER_SESSION_FILE):
        if (run / name).exists():
            found = read_record(run / name, seconds=SECONDS)
            if form_fault(found.get("parts", {}), PARTS) or form_fault(found.get("workers", {}), WORKERS):
                raise DataError(
                    f"{run / name} is damaged: it needs the seconds and calls of each part; remove it, it holds times alone"
                )
            return found
    return {}


def session_seconds(run: Path) -> float:
    """Seconds at work in earlier sessions: up to the last step that was logged, or noted, whichever is later."""
    noted = float(read_session(run).get("seconds", 0.0))
    return max([noted, *(float(line.get("seconds", 0.0)) for line in read_metrics(run)[-1:])])


def require_whole(run: Path) -> None:
    """DataError where one of the files that are read of a finished run is not of its form."""
    for read in (read_result, read_parents, read_data, read_session):
        read(run)
    if (run / "answers.jsonl").exists():
        read_kept_answers(run)
