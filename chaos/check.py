"""The invariants I1 to I5, checked after every round from what the topics and Redis hold.

In: all records of inputs and outputs, Redis' fields, what the traffic knows it has sent. Out: violations in plain
sentences, and how many answers came twice. Nothing of the kernel is used; Redis' bytes are read by :mod:`chaos.plain`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos.fold import Folded, Kind, NaiveFold, Taken, fold_clicks, kinds_of, parsed
from chaos.naive_budget import fold_budget, read_budget, unlike
from chaos.plain import Plain, read_clicked, read_plain

_SHOWN = 5  # of one kind of violation so many are told
_IDS = {"decisions": "decision_id", "alerts": "decision_id", "recommendations": "recommendation_id",
        "dead_letters": "dead_letter_id"}  # fmt: skip


@dataclass(slots=True)
class Evidence:
    """What a round has left behind. ``records`` by role (``transactions``, ``decisions``, ...), topic by topic.

    ``ends`` and ``applied`` are offsets by (topic, partition); ``fields`` Redis' fields by lane and partition.
    ``key_only``: records and fields are those of some cards, so that nothing can be said of other entities.
    ``cases_per_day`` is the alert budget of each partition, 0 for none, and ``budgets`` its fields by partition.
    """

    schema: Any
    topics: Any
    records: dict[str, list[Any]]
    ends: dict[tuple[str, int], int]
    applied: dict[tuple[str, int], int]
    fields: dict[str, dict[int, dict[bytes, bytes]]]
    spent: Mapping[str, tuple[int, float]]
    key_only: bool = False
    cases_per_day: float = 0.0
    budgets: Mapping[int, Sequence[bytes | None]] = field(default_factory=dict)


@dataclass(slots=True)
class Allowed:
    """What a fault may do: differing copies (a zombie's), and how many answers may come twice."""

    zombies: bool = False
    duplicates_max: int = 0
    one_partition: bool = False


@dataclass(slots=True)
class Verdict:
    """What was found."""

    violations: list[str] = field(default_factory=list)
    inputs: int = 0
    duplicates: int = 0
    differing: int = 0
    two_faced: set[str] = field(default_factory=set)  # sources of the differing copies

    def fail(self, rule: str, found: Iterable[str]) -> None:
        """Note violations of a rule, the first few of them in full."""
        texts = list(found)
        self.violations += [f"{rule}: {text}" for text in texts[:_SHOWN]]
        if len(texts) > _SHOWN:
            self.violations.append(f"{rule}: and {len(texts) - _SHOWN} more")


def check(evidence: Evidence, allowed: Allowed) -> Verdict:
    """Check all five."""
    verdict = Verdict(inputs=sum(len(evidence.records[role]) for role in ("transactions", "labels", "clicks")))
    good, bad = _sorted_out(evidence)
    first = {role: _first_copies(evidence, role, allowed, verdict) for role in _IDS}
    _every_input_is_answered(first, good, bad, verdict)
    if verdict.violations and any(s not in first["decisions"] for s in _sources(good["transactions"])):
        return verdict  # what follows folds by the decisions
    _state_is_exact(evidence, good, first, allowed, verdict)
    return verdict


def _sources(taken: Mapping[int, Sequence[Taken]]) -> list[str]:
    return [t.source for part in taken.values() for t in part]


def _sorted_out(evidence: Evidence) -> tuple[dict[str, dict[int, list[Taken]]], set[str]]:
    """The good records by role and partition, and the sources of those that were spoilt on purpose."""
    schema = evidence.schema
    ids = [name for entity in schema.entities for name in entity.fields]
    required = {"transactions": [schema.id, schema.time, *ids], "labels": [schema.id, schema.label_time, *ids],
                "clicks": ["event_id", "event_time", "session_id", "item_id"]}  # fmt: skip
    good: dict[str, dict[int, list[Taken]]] = {}
    bad: set[str] = set()
    for role, names in required.items():
        good[role] = {}
        for record in evidence.records[role]:
            source = f"{record.topic}:{record.partition}:{record.offset}"
            message = parsed(record.value, names)
            if message is None:
                bad.add(source)
            else:
                good[role].setdefault(record.partition, []).append(Taken(source, record.offset, message))
    return good, bad


def _first_copies(evidence: Evidence, role: str, allowed: Allowed, verdict: Verdict) -> dict[str, dict[str, Any]]:
    """I3: the first copy of each answer in partition order; later ones must be the same, or a zombie's."""
    found: dict[str, dict[str, Any]] = {}
    differing, copies = [], 0
    for record in evidence.records[role]:
        message = json.loads(record.value)
        source = message[_IDS[role]]
        if (first := found.setdefault(source, message)) is message:
            continue
        copies += 1
        if first == message:
            continue
        inputs = ("label_position", "model_version")
        # A list also follows what each worker has seen of late, and how much time it had.
        explained = role == "recommendations" or not allowed.one_partition
        explained |= any(first.get(name) != message.get(name) for name in inputs)
        verdict.differing += 1
        verdict.two_faced.add(source)
        if not (allowed.zombies and explained):
            differing.append(f"{role} {source} has two contents: {_difference(first, message)}")
    verdict.duplicates += copies
    verdict.fail("I3", differing)
    if copies > allowed.duplicates_max:
        verdict.fail("I3", [f"{copies} {role} came twice, at most {allowed.duplicates_max} were in flight"])
    return found


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    names = [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
    return ", ".join(f"{name} {str(one.get(name))[:80]} and {str(other.get(name))[:80]}" for name in sorted(names))


def _every_input_is_answered(first: Mapping[str, Mapping[str, Any]], good: Mapping[str, Any], bad: set[str],
                             verdict: Verdict) -> None:  # fmt: skip
    """I2 and I5: whoever drops the ids that it has seen gets one answer for each input, and none for anything else."""
    alerted = {source for source, decision in first["decisions"].items() if decision["action"] != "allow"}
    expected = {"decisions": set(_sources(good["transactions"])), "alerts": alerted,
                "recommendations": set(_sources(good["clicks"])), "dead_letters": bad}  # fmt: skip
    for role, wanted in expected.items():
        got = set(first[role])
        verdict.fail("I2", [f"{source} has nothing in {role}" for source in sorted(wanted - got)])
        extra = got - wanted - (verdict.two_faced if role == "alerts" else set())  # the other copy may ask for one
        verdict.fail("I5", [f"{role} answer {source}, which asks for none" for source in sorted(extra)])
    verdict.fail("I3", [f"alert and decision {source} differ: {_difference(decision, alert)}"
                        for source, alert in first["alerts"].items()
                        if (decision := _of_alert(first["decisions"].get(source), alert)) != _of_alert(alert, alert)
                        ] if not verdict.differing else [])  # fmt: skip


def _of_alert(message: Mapping[str, Any] | None, alert: Mapping[str, Any]) -> dict[str, Any]:
    """What a decision and its alert have in common."""
    skipped = {"reasons", "entities", "values"}
    return {name: value for name, value in (message or {}).items() if name in alert and name not in skipped}


def _state_is_exact(evidence: Evidence, good: Mapping[str, dict[int, list[Taken]]],
                    first: Mapping[str, dict[str, Any]], allowed: Allowed, verdict: Verdict) -> None:  # fmt: skip
    """I1 and I4."""
    late = [f"{topic} partition {p} is applied up to {evidence.applied.get((topic, p), 0)} of {end}"
            for (topic, p), end in evidence.ends.items() if evidence.applied.get((topic, p), 0) != end]  # fmt: skip
    verdict.fail("I1", late)
    kinds, spent = {kind.name: kind for kind in kinds_of(evidence.schema)}, dict[str, tuple[int, float]]()
    for partition, fields in evidence.fields["fraud"].items():
        transactions = good["transactions"].get(partition, [])
        folded = NaiveFold(evidence.schema)(transactions, good["labels"].get(partition, []), first["decisions"])
        spent |= folded.spent
        if evidence.key_only:
            key = f"{evidence.schema.key.name}:"
            folded.state = {name: state for name, state in folded.state.items() if name.startswith(key)}
        verdict.fail("I1", _compare(fields, folded, kinds, zombies=allowed.zombies))
        if evidence.cases_per_day:
            verdict.fail("I1", _budget(evidence, partition, transactions, good["labels"].get(partition, []), first))
        verdict.fail("I4", _order(folded, first["alerts"], evidence.schema))
    verdict.fail("I1", [f"{card} spent {evidence.spent.get(card)} by the ledger, {spent.get(card)} by the topics"
                        for card in sorted(evidence.spent.keys() | spent.keys())
                        if evidence.spent.get(card) != spent.get(card)])  # fmt: skip
    for partition, fields in evidence.fields["recommend"].items():
        sessions = fold_clicks(good["clicks"].get(partition, []))
        held = {name: read_clicked(name, value) for name, value in ((n.decode(), v) for n, v in fields.items())}
        verdict.fail("I1", [f"{name} is {held.get(name)}, not {sessions.get(name)}"
                            for name in sorted(held.keys() | sessions.keys()) if held.get(name) != sessions.get(name)
                            ])  # fmt: skip


def _budget(evidence: Evidence, partition: int, transactions: list[Taken], labels: list[Taken],
            first: Mapping[str, dict[str, Any]]) -> list[str]:  # fmt: skip
    """Where the alert budget's state and its thresholds are not what the decisions give, to the bit."""
    budget = evidence.cases_per_day
    folded, wrong = fold_budget(evidence.schema, transactions, labels, first["decisions"], budget)
    return [f"partition {partition}: {text}" for text in
            (*unlike(read_budget(evidence.budgets[partition], budget), folded), *wrong)]  # fmt: skip


def _compare(fields: Mapping[bytes, bytes], folded: Folded, kinds: Mapping[str, Kind], *, zombies: bool) -> list[str]:
    found = []
    held = {name.decode(): read_plain(value, kinds[name.decode().split(":", 1)[0]].shape)
            for name, value in fields.items()}  # fmt: skip
    for name in sorted(held.keys() | folded.state.keys()):
        one, other = held.get(name), folded.state.get(name)
        if one is None or other is None:
            found.append(f"{name} is {'missing' if one is None else 'there'} in Redis, against the inputs")
        elif one != other:
            text = _unlike(one, other, zombies=zombies)
            if text:
                found.append(f"{name}: {text}")
    return found


def _unlike(held: Plain, folded: Plain, *, zombies: bool) -> str:
    """Where two states differ; of a zombie's answers it cannot be told which ones the memory holds."""
    for name in ("newest", "first", "label_newest", "tiles", "labels", "latest", "usual"):
        one, other = getattr(held, name), getattr(folded, name)
        if one != other:
            return f"{name} {_first_unlike(one, other)}"
    plain = [[(e.event, e.time, e.label, e.label_time, e.level, e.others) for e in side.memory]
             for side in (held, folded)]  # fmt: skip
    if plain[0] != plain[1]:
        return f"memory {_first_unlike(dict(enumerate(plain[0])), dict(enumerate(plain[1])))}"
    if zombies:
        return ""
    decided = [{e.event: (e.action, e.score, e.anomaly) for e in side.memory} for side in (held, folded)]
    return f"decisions in the memory {_first_unlike(*decided)}"


def _first_unlike(one: Any, other: Any) -> str:
    if not isinstance(one, dict) or not isinstance(other, dict):
        return f"is {one}, not {other}"
    key = next(key for key in (*one, *other) if one.get(key) != other.get(key))
    return f"at {key} is {one.get(key)}, not {other.get(key)}"


def _order(folded: Folded, alerts: Mapping[str, Mapping[str, Any]], schema: Any) -> list[str]:
    """The k-th transaction of a card saw the k-1 before it, and their sum."""
    key, longest = schema.key.name, max(schema.key.windows_ms)
    counted, summed = f"{key}_count_", f"{key}_{schema.numeric[0].name}_sum_"
    found = []
    for source, (count, total) in folded.before.items():
        if source in alerts:
            values = alerts[source]["values"]
            days = f"{longest // 86_400_000}d"
            seen = values[counted + days], values[summed + days]
            if seen != (count, total):
                found.append(f"{source} saw {seen[0]:g} transactions of {seen[1]}, before it lie {count} of {total}")
    return found
