"""``headrace explain EVENT_ID``: one past decision, computed again from the archive, compared, and explained.

In: the archive, the models that decided. Out: features, rules, score, reasons, and what would have had to differ; exit
code 0 where everything published is the same to the bit, 1 where something differs. Only reads.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow.compute as pc
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from features.catalogue import build_catalogue
from features.counterfactual import Change, changes, split_values
from features.errors import ArtifactMissing, HistoryError, SettingsError
from features.messages import Reason
from features.reasons import sentence
from features.schema import Schema
from features.scoring import FraudModel
from stream.archive import archive_store
from stream.archived import Archive
from stream.explain_rules import RulesAgain, rules_again
from stream.explain_rules import told as rules_told
from stream.models import NO_VERSION
from stream.past_vector import PastVector, Replayer
from stream.progress import progress_bar
from stream.settings import Settings
from trainer.artifacts import load, versions

_DECIMALS = 6
_CHANGES_MAX = 5
_COLUMNS = ("record_partition", "source_offset", "event_id", "key", "event_time", "score", "anomaly", "action",
            "reasons", "model_version", "label_position", "duplicate", "review_score", "rules", "shadow_rules",
            "rules_version", "degraded", "values")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Explanation:
    """What was published, what came out again, and why. ``differs`` names what is not the same to the bit.

    ``by_model``: the score lies on that side of the threshold that the action says. Else something else decided (a
    rule, the first decision of a repeat, a missing score), and there are no ``changes``.
    ``rules`` is what the rules of the settings say now; None where there are none.
    """

    published: Mapping[str, Any]
    past: PastVector
    score: float
    anomaly: float
    thresholds: tuple[float, float]
    reasons: list[Reason]
    by_model: bool
    changes: list[dict[str, Any]]
    differs: list[str]
    compared: int
    rules: RulesAgain | None = None


def explain(settings: Settings, schema: Schema, archive: Archive, event_id: str, progress: Any,
            lists: Sequence[str] = ()) -> Explanation:  # fmt: skip
    """Find, replay, compare. ``lists`` are files with what lists of the rules held, ``NAME=FILE``.

    Raises
    ------
    HistoryError
        If there is no such decision in the archive.
    ArtifactMissing
        If the version that decided is gone.
    StateMissing
        If records that came before it are not in the archive.
    """
    published = _find(settings, archive, event_id)
    model = _model(settings, schema, published)
    catalogue = build_catalogue(schema.transactions)
    place = published["record_partition"], published["source_offset"], published["label_position"]
    past = Replayer(settings, catalogue, archive).vector(*place, progress)
    rows = past.x.reshape(1, -1)
    score, anomaly = (round(float(column[0]), _DECIMALS) for column in model.score_many(rows))
    review, block = _thresholds(settings, published, model)
    differs, compared = _differences(published, past, score, anomaly, catalogue.names)
    level = {"allow": review, "review": review, "block": block}[published["action"]]
    rules = None
    if settings.worker.rules is not None:
        rules = rules_again(settings.worker.rules, lists, catalogue, settings.worker, published, past,
                            (score, anomaly), (review, block))  # fmt: skip
        differs += rules.differs
    alerted = published["action"] != "allow"
    by_model, found = (score >= level) == alerted, list[Change]()
    if by_model:
        found = changes(split_values(model.text), past.x, lambda x: np.round(model.probability_many(x), _DECIMALS),
                        level, below=alerted)  # fmt: skip
    told = [{"feature": catalogue.names[c.feature], "was": _plain(past.x[c.feature]), "value": c.value,
             "score": c.score, "text": sentence(catalogue.features[c.feature], c.value)}
            for c in found[:_CHANGES_MAX]]  # fmt: skip
    return Explanation(published, past, score, anomaly, (review, block), model.reasons(past.x), by_model, told, differs,
                       compared, rules)  # fmt: skip


def _find(settings: Settings, archive: Archive, event_id: str) -> dict[str, Any]:
    """The first decision about an event, by its id or by the decision's."""
    topics = settings.topics
    found: dict[str, Any] | None = None
    source, _, offset = event_id.rpartition(":")
    named = source.startswith(f"{topics.transactions}:") and offset.isdecimal()
    for date in reversed(archive.dates("decisions")):
        table = archive.of_date("decisions", topics.decisions, date, _COLUMNS)
        if not table.num_rows:
            continue
        wanted = pc.equal(table["event_id"], event_id)
        if named:
            wanted = pc.or_(
                wanted,
                pc.and_(
                    pc.equal(table["source_offset"], int(offset)),
                    pc.equal(table["record_partition"], int(source.rpartition(":")[2])),
                ),
            )
        rows = table.filter(wanted).to_pylist()
        if rows:  # of an event with another time, the first decision lies under an earlier date
            found = min(rows, key=lambda row: (bool(row["duplicate"]), row["record_offset"]))
            if named or not found["duplicate"]:
                return found
    if found is not None:
        return found
    raise HistoryError(
        f"no decision about {event_id!r} is in the archive at {settings.archive.url}; it is written there some "
        f"{settings.archive.every_s:.0f} s after it was made, while `headrace archive` runs"
    )


def _model(settings: Settings, schema: Schema, published: Mapping[str, Any]) -> FraudModel:
    version, kept = published["model_version"], versions(settings.artifacts)
    if version == NO_VERSION:
        raise ArtifactMissing(
            f"no model was published when this decision was made ({published['degraded']}): it followed from rules "
            f"({', '.join(published['rules'] or []) or 'none hit'}) and worker.default_action, and there is no score "
            "to compute again"
        )
    if version not in kept:
        there = f"there are {', '.join(kept)}" if kept else "there is none"
        raise ArtifactMissing(
            f"the models of version {version} made this decision and are not in {settings.artifacts} any more "
            f"({there}; the newest few are kept): give --artifacts DIRECTORY with a copy that has them"
        )
    model = load(settings.artifacts, version, schema.hash).fraud
    if model is None:
        raise ArtifactMissing(f"version {version} holds no fraud model; the decision was made without one")
    return model


def _thresholds(settings: Settings, published: Mapping[str, Any], model: FraudModel) -> tuple[float, float]:
    """The thresholds in force: that of review as the decision says it."""
    in_force = published["review_score"]
    review = model.thresholds.review if in_force is None else in_force
    block = model.thresholds.block if settings.worker.block_score is None else settings.worker.block_score
    return float(review), max(float(review), round(float(block), _DECIMALS))


def _differences(published: Mapping[str, Any], past: PastVector, score: float, anomaly: float, names: list[str]
                 ) -> tuple[list[str], int]:  # fmt: skip
    """What is not the same to the bit, and how many figures were compared."""
    told, figures = dict(published["values"] or []), list[tuple[str, float]]()
    if not published["duplicate"]:  # a repeat has the figures of the first
        figures = [("score", score), ("anomaly", anomaly)]
        if _without_score(published):  # a figure that was missing is published as 0
            figures = [("anomaly", anomaly)] if published["anomaly"] else []
    differs = [f"{name}: published {published[name]!r}, replayed {ours!r}" for name, ours in figures
               if _bits(ours) != _bits(published[name])]  # fmt: skip
    compared = len(figures) + len(told)
    for name, ours in zip(names, past.x.tolist(), strict=True):
        if name in told and _bits(ours) != _bits(float("nan") if told[name] is None else told[name]):
            differs.append(f"{name}: published {told[name]!r}, replayed {_plain(ours)!r}")
    return differs, compared


def _without_score(published: Mapping[str, Any]) -> bool:
    """Whether it was decided on a rung that has no score."""
    return (published["degraded"] or "").startswith(("without_model:", "default_action:"))


def _bits(value: float) -> bytes:
    return b"missing" if value != value else struct.pack("<d", value)


def _plain(value: float) -> float | None:
    return None if value != value else float(value)


def facts_of(found: Explanation, names: list[str]) -> dict[str, Any]:
    """Everything as plain values, for JSON."""
    published = {name: value for name, value in found.published.items() if name not in ("values", "record_offset")}
    return {
        "published": published | {"event_time": int(found.published["event_time"].timestamp() * 1000)},
        "score": found.score, "anomaly": found.anomaly,
        "review_score": found.thresholds[0], "block_score": found.thresholds[1],
        "features": dict(zip(names, map(_plain, found.past.x.tolist()), strict=True)),
        "reasons": [msgspec.to_builtins(reason) for reason in found.reasons],
        "decided_by_model": found.by_model, "would_have_to_differ": found.changes,
        "rules": None if found.rules is None else msgspec.to_builtins(found.rules) | {
            "same_file": found.rules.same_file},
        "same": not found.differs, "differs": found.differs, "compared": found.compared,
        "replayed_records": found.past.folded,
    }  # fmt: skip


def show(found: Explanation, names: list[str], partitions: int, console: Console) -> None:
    """For people."""
    p, (review, block) = found.published, found.thresholds
    event_id, key = escape(p["event_id"]), escape(p["key"])
    console.print(f"[bold]{event_id}[/]  {p['event_time']:%Y-%m-%d %H:%M:%S}  key {key}  [bold]{p['action']}[/]  "
                  f"score {p['score']}  anomaly {p['anomaly']}  model {p['model_version']}")  # fmt: skip
    if p["duplicate"]:
        console.print("it repeats a transaction and has the score and action of its first decision; what follows is "
                      f"about the repeat, whose score is {found.score}")  # fmt: skip
    console.print(f"review from {review:g}, block from {block:g}"
                  + (f", degraded: {p['degraded']}" if p["degraded"] else ""))  # fmt: skip
    if _without_score(p):
        console.print(f"it was decided without a score; the models of version {p['model_version']} give it "
                      f"{found.score}, and what follows is about that")  # fmt: skip
    for what, rules in (("rules that hit", p["rules"]), ("rules in shadow that hit", p["shadow_rules"])):
        if rules:
            console.print(f"{what}: {', '.join(rules)}")
    for line in rules_told(found.rules) if found.rules is not None else []:
        console.print(escape(line))
    if found.rules is None and p["rules_version"] is not None:
        console.print(f"rules of version {p['rules_version']} were asked; give --rules FILE to ask them again")
    for reason in found.reasons:
        console.print(f"  {reason.contribution:+.2f}  {reason.text}")
    table = Table("feature", "value", title="Features", title_justify="left")
    for name, value in zip(names, found.past.x.tolist(), strict=True):
        table.add_row(name, "missing" if value != value else f"{value:.6g}")
    console.print(table)
    console.print(_would(found))
    for change in found.changes:
        was = "missing" if change["was"] is None else f"{change['was']:.6g}"
        console.print(f"  {change['feature']} at {change['value']:.6g} instead of {was}: score {change['score']}")
    if not found.differs:
        console.print(f"[green]same to the bit[/]: {found.compared} published figures, {found.past.folded:,} records "
                      "folded again"
                      + (", and the same rules hit" if found.rules is not None and found.rules.same_file
                         else ""))  # fmt: skip
        return
    console.print(f"[red]of {found.compared} published figures, and the rules, {len(found.differs)} differ:[/]")
    for line in found.differs:
        console.print(f"  {line}")
    if partitions > 1:
        console.print("With several partitions, entities that they share depend on what the worker had read of each.")


def _would(found: Explanation) -> str:
    """What the changes are about."""
    action = found.published["action"]
    if not found.by_model:
        return f"The model's score, {found.score}, did not make it {action}, so no change of a feature would undo that."
    other = "not be let pass" if action == "allow" else f"not be {action}"
    if found.changes:
        return f"It would {other}, as far as the model decides, with one of these alone:"
    return f"No change of a single feature would have it {other}, as far as the model decides."


def run(settings: Settings, schema: Schema, event_id: str, lists: Sequence[str] = (), *, as_json: bool) -> int:
    """The exit code: 0 the same to the bit, 1 something differs.

    Raises
    ------
    HeadraceError
        If there is no archive, no such decision, or not everything that it needs.
    """
    if settings.archive.url is None:
        raise SettingsError(["archive.url: expected the archive that has the decision; give --archive URL"])
    names = build_catalogue(schema.transactions).names
    archive = Archive(archive_store(settings))
    with progress_bar("replaying", 0) as advance:
        found = explain(settings, schema, archive, event_id, advance, lists)
    if as_json:
        print(msgspec.json.encode(facts_of(found, names)).decode())
    else:
        show(found, names, settings.topics.transaction_partitions, Console(highlight=False))
    return 1 if found.differs else 0
