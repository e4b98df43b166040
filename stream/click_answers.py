"""Answers to clicks as messages: one by one, or many at once where clicks share their lists.

In: one partition's clicks of a cycle and their lists. Out: messages, and the newest one of each session and user for
pulling (:mod:`stream.lists`). No state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from features import list_messages
from features.decode import ClickBatch
from features.listing import Lists
from features.messages import Degraded, Recommendation
from features.recordbatch import Columns
from features.texts import Texts
from stream.lane import source_id
from stream.trending import ClickPart

_Longs = list_messages.Longs


def one_by_one(topic: str, part: ClickPart, first: int, found: Lists, version: str, degraded: Degraded | None
               ) -> Iterator[Recommendation]:  # fmt: skip
    """The answer to each click of ``topic``; ``found`` has the first one's list at ``first``."""
    batch = part.batch
    for i, record in enumerate(part.records):
        yield Recommendation(
            recommendation_id=source_id((topic, part.partition), record.offset),
            event_id=batch.event_id[i],
            session_id=batch.session_id[i],
            user_id=batch.user_id[i],
            item_id=batch.item_id[i],
            event_time=int(batch.time[i]),
            items=found.items[first + i],
            model_version=version,
            long_session=part.long_session[i],
            degraded=degraded,
            left_out=found.left_out[first + i],
        )  # fmt: skip


def together(topic: str, part: ClickPart, first: int, found: Lists, same: _Longs, version: str,
             degraded: Degraded | None) -> Columns:  # fmt: skip
    """The same messages with their keys, written by compiled code; ``same`` as of :class:`features.listing.Lists`."""
    batch, records = part.batch, part.records
    _, firsts, which = np.unique(same[first : first + len(records)], return_index=True, return_inverse=True)
    lists = [(found.items[first + at], found.left_out[first + at]) for at in firsts.tolist()]
    session, user = Texts.of(batch.session_id), _optional(batch.user_id)
    clicks = list_messages.Clicks(
        topic, part.partition, np.array([record.offset for record in records], np.int64), Texts.of(batch.event_id),
        session, user, Texts.of(batch.item_id), batch.time, np.array(part.long_session, np.int8),
    )  # fmt: skip
    values = list_messages.spliced(clicks, lists, which, version, degraded)
    keys = session
    if (user.starts >= 0).any():
        keys = Texts.of([user or session for user, session in zip(batch.user_id, batch.session_id, strict=True)])
    return Columns(keys, values)


def _optional(ids: list[str | None]) -> Texts:
    """Ids of which some are missing: these begin below 0."""
    if not any(ids):
        nothing = np.full(len(ids), -1, np.int64)
        return Texts(np.zeros(0, np.uint8), nothing, nothing)
    texts = Texts.of([id_ or "" for id_ in ids])
    missing = np.array([id_ is None for id_ in ids])
    return Texts(texts.data, np.where(missing, -1, texts.starts), np.where(missing, -1, texts.ends))


def newest(batch: ClickBatch, value: Callable[[int], bytes]) -> dict[str, bytes]:
    """The last answer to each session and user of a batch, by ``session:<id>`` and ``user:<id>``."""
    last = {f"session:{id_}": i for i, id_ in enumerate(batch.session_id)}
    last |= {f"user:{id_}": i for i, id_ in enumerate(batch.user_id) if id_ is not None}
    return {name: value(i) for name, i in last.items()}
