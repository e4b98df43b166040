"""Where a lane's partitions stand: what is applied, and whether it fits the topics as they are now.

In: heads as Redis holds them, the ends of topics. Out: heads to go on from, or the reason why not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from features.errors import StateMissing, TopicError
from stream.lane import Lane, Produced, Target
from stream.lists import ListWriter
from stream.store import HEAD, Head, StateStore, Write, conflict, decode_head, written_since
from stream.tails import TailReader


@dataclass(slots=True)
class Station:
    """A lane with its store, and the applied head of each partition that this worker holds.

    What is applied is handed to ``lists`` where there is one.

    By partition, ``answered``: up to which input offsets the tails held answers when it was taken over, and ``ends``:
    where the tails ended then.
    """

    lane: Lane
    store: StateStore
    heads: dict[int, tuple[Head, bytes]]
    answered: dict[int, dict[str, int]] = field(default_factory=dict)
    ends: dict[int, dict[str, int]] = field(default_factory=dict)
    lists: ListWriter | None = None

    async def apply(self, writes: Sequence[Write], produced: Sequence[Produced]) -> None:
        """Write the state of a cycle, and then its lists; errors as of :meth:`StateStore.apply`."""
        await self.store.apply(writes)
        if self.lists is not None:
            for part in produced:
                self.lists.put(part.lists)

    async def read(self, wanted: Mapping[int, Sequence[bytes]]) -> dict[int, dict[bytes, bytes | None]]:
        """Fields by partition and name, in one round trip.

        Raises
        ------
        StateConflict
            If a partition that this worker holds is not, in the same reply, as its last write or a later one left it.
            A Redis that came back without the end of its log would otherwise give rows that are older than the answers.
        """
        if not wanted:
            return {}
        held = {p: self.heads[p][0].writer for p in wanted if p in self.heads}
        values = await self.store.read({p: [*fields, HEAD] if p in held else fields for p, fields in wanted.items()})
        for p, writer in held.items():
            if not written_since(found := values[p].pop(), writer):
                raise conflict(p, found or b"")
        return {p: dict(zip(fields, values[p], strict=True)) for p, fields in wanted.items()}


@dataclass(frozen=True, slots=True)
class Bounds:
    """First and end offset of each input partition, and what the group has committed (None: nothing)."""

    first: Mapping[Target, int]
    end: Mapping[Target, int]
    committed: Mapping[Target, int | None]


async def heads_of(station: Station, found: Mapping[int, bytes], bounds: Bounds, tails: TailReader, schema_hash: str
                   ) -> dict[int, Head]:  # fmt: skip
    """The head that each partition stands at; a new one, and a newly named output, begins where the topics are.

    Raises
    ------
    StateMissing
        If a partition's state is gone, or its offset lies outside of what the topic holds.
    StateMismatch
        If it was made for another schema or partition count.
    TopicError
        If a topic has more partitions than the settings say.
    """
    _check_count(station.lane, max(found))
    lane, heads = station.lane, dict[int, Head]()
    for p, value in found.items():
        where = station.store.key(p)
        if value:
            heads[p] = decode_head(value, schema=schema_hash, partitions=lane.partitions, where=where)
            _check_bounds(lane, p, heads[p], bounds)
        else:
            _refuse_cold(lane, p, bounds, where)
            offsets = {t: bounds.first.get((t, p), 0) for t in lane.topics}
            heads[p] = Head(offsets, {}, schema_hash, lane.partitions)
    missing = [(t, p) for p, head in heads.items() for t in lane.outputs if t not in head.outputs]
    ends = await tails.ends(missing) if missing else {}
    outputs = {p: {t: head.outputs.get(t, ends.get((t, p), 0)) for t in lane.outputs} for p, head in heads.items()}
    return {p: replace(head, outputs=outputs[p]) for p, head in heads.items()}


def _check_count(lane: Lane, newest: int) -> None:
    """State is sharded by partition, so a topic that has grown must not be read as if it had not."""
    if newest >= lane.partitions:
        raise TopicError(
            f"{' or '.join(lane.topics)} has a partition {newest}, but the settings say {lane.partitions} partitions: "
            "the count is fixed at creation, because state belongs to a partition. Create the topic anew with "
            f"{lane.partitions}, or copy it with `headrace repartition` and start over"
        )


def _refuse_cold(lane: Lane, partition: int, bounds: Bounds, where: str) -> None:
    """An empty Redis under committed offsets would score every card as new: never silently."""
    for topic in lane.topics:
        committed = bounds.committed.get((topic, partition))
        if committed is not None and committed > bounds.first.get((topic, partition), 0):
            raise StateMissing(
                f"Redis has no state at {where}, but the group has committed offset {committed} of {topic} partition "
                f"{partition}. Was Redis emptied? Restore it, make the state anew with `headrace rebuild`, or start "
                "over with another redis.namespace and worker.group"
            )


def _check_bounds(lane: Lane, partition: int, head: Head, bounds: Bounds) -> None:
    for topic in lane.topics:
        offset, target = head.offsets.get(topic, 0), (topic, partition)
        first, end = bounds.first.get(target, 0), bounds.end.get(target, offset)
        if offset > end:
            raise StateMissing(
                f"the applied offset {offset} of {topic} partition {partition} lies beyond its end {end}: the topic "
                "was emptied or recreated. Start over with another redis.namespace and worker.group"
            )
        if offset < first:
            raise StateMissing(
                f"records {offset} to {first} of {topic} partition {partition} were deleted before they were applied; "
                "retention must exceed the longest stop. Start over with another "
                "redis.namespace and worker.group"
            )
