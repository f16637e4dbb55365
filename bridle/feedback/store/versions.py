"""Model versions as the store keeps them: what each came from, the judgements that it learnt from, the models that scored its answers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Connection, case, func, select

from bridle.feedback.store import tables
from bridle.feedback.store.reading import Snapshot, snapshot_of
from bridle.feedback.store.store import Store


@dataclass(frozen=True)
class Version:
    """A model that was registered. `snapshots` are those that it learnt from, by task; `noted` says whether that was kept at all, which
    earlier versions of bridle did not do."""

    name: str
    kind: str
    status: str
    hash: str
    parent: str | None
    created_at: str
    snapshots: Mapping[str, str] = field(default_factory=dict)
    shaped_by: Sequence[str] = ()
    noted: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "snapshots": dict(self.snapshots), "shaped_by": list(self.shaped_by)}


def model_versions(store: Store) -> list[Version]:
    """All of them, in the order in which they came."""
    table = tables.model_version
    with store.reading() as connection:
        rows = connection.execute(select(table).order_by(table.c.id)).all()
    return [
        Version(
            row.name,
            row.kind,
            row.status,
            row.weights_sha256,
            row.parent,
            row.created_at,
            row.config.get("snapshots") or ({"": row.snapshot_sha256} if row.snapshot_sha256 else {}),
            row.shaped_by or (),
            row.shaped_by is not None,
        )
        for row in rows
    ]


def lineage_of(versions: Sequence[Version], content: str) -> list[Version]:
    """A version, what it came from up to its base, and the reward models that shaped these, with theirs: each once."""
    known, found, left = {one.hash: one for one in versions}, dict[str, Version](), [content]
    while left:
        version = known.get(left.pop(0))
        if version is not None and version.hash not in found:
            found[version.hash] = version
            left += [*([version.parent] if version.parent else []), *version.shaped_by]
    return list(found.values())


def snapshot_contents(store: Store, snapshot_id: str) -> dict[str, Any]:
    """What a snapshot holds: how many judgements or ratings, of whom, which of them weigh nothing, where they came from; and the files
    that had been imported when it was taken."""
    with store.reading() as connection:
        snapshot, table = snapshot_of(connection, snapshot_id), tables.snapshot.c
        taken = connection.execute(select(table.created_at).where(table.sha256 == snapshot_id)).scalar_one()
        file = tables.imported_file.c
        files = select(file.name).where(file.created_at <= taken).order_by(file.id)
        return {
            "snapshot": snapshot_id,
            "taken": taken,
            "of": "ratings" if "kind" in snapshot.query else "judgements",
            "count": len(snapshot.judgement_ids),
            **{name: value for name, value in snapshot.query.items() if value is not None},
            **givers_of(connection, snapshot_id, "kind" in snapshot.query),
            "files": list(connection.execute(files).scalars()),
        }


def givers_of(connection: Connection, snapshot_id: str, rated: bool) -> dict[str, dict[str, int]]:
    """How many of a snapshot's rows each labeler gave, how many of those weigh nothing, and how many came from each source."""
    member, given = (tables.snapshot_rating, tables.rating) if rated else (tables.snapshot_row, tables.judgement)
    key = member.c.rating_sha256 if rated else member.c.judgement_sha256
    nothing = func.sum(case((member.c.weight == 0, 1), else_=0))
    query = select(given.c.labeler, given.c.source, func.count(), nothing).select_from(member)
    query = query.join(given, given.c.sha256 == key).where(member.c.snapshot_sha256 == snapshot_id)
    labelers, weightless, sources = dict[str, int](), dict[str, int](), dict[str, int]()
    for labeler, source, count, without in connection.execute(query.group_by(given.c.labeler, given.c.source)):
        labelers[labeler] = labelers.get(labeler, 0) + count
        sources[source] = sources.get(source, 0) + count
        if without:
            weightless[labeler] = weightless.get(labeler, 0) + without
    return {
        name: dict(sorted(counted.items()))
        for name, counted in (("labelers", labelers), ("weightless", weightless), ("sources", sources))
    }


def weightless(store: Store, snapshot: Snapshot) -> dict[str, int]:
    """How many judgements of a snapshot weigh nothing for want of reliability, by labeler."""
    if all(weight > 0 for weight in snapshot.weights):
        return {}
    found: dict[str, int] = snapshot_contents(store, snapshot.id)["weightless"]
    return found


# ---------------------------------------------------------------------------------------------------- in words


def with_contents(store: Store, lineage: Sequence[Version]) -> list[dict[str, Any]]:
    """Each version with what its snapshots hold, the ids of their judgements among it."""
    found = []
    for version in lineage:
        learnt = {}
        for task, snapshot in version.snapshots.items():
            ids = list(store.snapshot(snapshot).judgement_ids)
            learnt[task or "judgements"] = {**snapshot_contents(store, snapshot), "ids": ids}
        found.append({**version.as_dict(), "learnt_from": learnt})
    return found


def version_line(version: Version) -> str:
    return f"{version.name:<16} {version.kind:<10} {version.status:<10} {version.hash[:15]}…  {version.created_at[:19]}"


def lineage_lines(lineage: Sequence[Mapping[str, Any]]) -> list[str]:
    """For a reader: each version, its parent, what shaped it, and whose judgements it learnt from."""
    names = {one["hash"]: one["name"] for one in lineage}
    lines = list[str]()
    for one in lineage:
        lines.append(f"{one['name']}: {one['kind']}, {one['status']}, {one['hash'][:15]}…, {one['created_at'][:19]}")
        if one["parent"]:
            lines.append(f"  from {names.get(one['parent'], one['parent'][:15])}")
        for content in one["shaped_by"]:
            lines.append(f"  scored by {names.get(content, 'a model that is not registered')} ({content[:15]}…)")
        for task, held in one["learnt_from"].items():
            lines += [f"  {line}" for line in snapshot_lines(task, held)]
        if not one["noted"]:
            lines.append(
                "  of what it learnt from nothing was noted: an earlier version of bridle made it, or it was put there by hand"
            )
    if any(one["learnt_from"] for one in lineage):
        lines.append("the ids of all judgements: the same with --json, under learnt_from, ids")
    return lines


def snapshot_lines(task: str, held: Mapping[str, Any]) -> list[str]:
    """What one snapshot holds."""
    counted = {
        key: ", ".join(f"{name} {count:,}" for name, count in held[key].items())
        for key in ("labelers", "weightless", "sources")
    }
    by = f" by the criterion {held['criterion']}" if held.get("criterion") else ""
    lines = [
        f"learnt {task} from {held['count']:,} {held['of']}{by}, snapshot {held['snapshot'][:15]}…, {held['taken'][:19]}"
    ]
    lines.append(f"  given by {counted['labelers']}; source: {counted['sources']}")
    if counted["weightless"]:
        lines.append(f"  weighing nothing, for want of reliability: {counted['weightless']}")
    if held["files"]:
        lines.append(f"  files imported until then: {', '.join(held['files'])}")
    return lines
