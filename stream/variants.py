"""Two ways to recommend, side by side: who is shown which, what the second one is, and what became of it.

In: ids of sessions or users, settings of ``[ab]``. Out: variants, models by variant, counts for the metrics. Which
variant somebody gets is a hash of the experiment's name and the id: it needs no state, and is the same in every worker,
after every restart, and in a backtest. State owned: the models of B, and what each cached session was shown last.
"""

from __future__ import annotations

import asyncio
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from features.errors import ArtifactMissing, SettingsError
from features.hashing import hash_strings
from features.listing import Clicked, Lister, Lists
from features.messages import Recommendation, Variant
from stream.ab_settings import AbSettings
from stream.lane import Tally
from stream.metrics import Metrics
from stream.models import ModelHolder, Served, answering, load_served
from stream.sessions import Session, start_from_earlier
from stream.settings import Settings
from stream.trending import ClickPart
from stream.ways import Way
from trainer import artifacts

Answering = Callable[[Way, Any, Clicked], Lists]  # of one way and model
LEVERS_OF_B = 1  # their number on the shelf, where B has some of its own
_BUCKETS = 10_000
_VERIFY_S = 60.0
_SHOWN_MAX = 100  # items that a session is remembered to have been shown


def of_b(settings: AbSettings, ids: Sequence[str]) -> NDArray[np.bool_]:
    """Who of these sessions or users is shown B; bool[n]."""
    hashes = hash_strings([f"{settings.name}\x1f{id_}" for id_ in ids])
    return np.asarray(hashes % np.uint64(_BUCKETS) < np.uint64(round(settings.share * _BUCKETS)))


def units(settings: AbSettings, session_ids: Sequence[str], user_ids: Sequence[str | None]) -> list[str]:
    """What is split: sessions, or users where they are known."""
    if settings.by == "session":
        return list(session_ids)
    return [session if user is None else user for session, user in zip(session_ids, user_ids, strict=True)]


class VariantModels:
    """The models of A, with those of B beside them, for a pipeline and a worker in the place of a :class:`ModelHolder`.

    B has the models of ``ab.model``: a version of ``artifacts``, or a directory whose newest version is followed as
    that of A is; without it those of A. With ``ab.ranker`` off its candidates are served in their own order.

    Raises
    ------
    ArtifactError
        If B's models are missing, damaged or of another schema.
    """

    def __init__(self, a: ModelHolder, settings: Settings, schema_hash: str, names: Sequence[str]) -> None:
        self._a = a
        self._ab, shared = settings.ab, settings.worker.map_models
        self._pinned: Served | None = None
        self._holder: ModelHolder | None = None
        if self._ab.model is not None and re.fullmatch(r"\d{6,18}", self._ab.model):
            artifacts.verify_in_child(settings.artifacts, self._ab.model, schema_hash, _VERIFY_S)
            self._pinned = load_served(settings.artifacts, self._ab.model, schema_hash, names, shared=shared)
        elif self._ab.model is not None:
            root = Path(self._ab.model).expanduser()
            if not root.is_dir():
                problem = f"ab.model = {self._ab.model!r}: expected a version of {settings.artifacts} or a directory"
                raise SettingsError([problem])
            self._holder = ModelHolder(root, schema_hash, names, Metrics(), lambda: None, shared=shared)
        self._made: tuple[Served, Served] | None = None
        self._current = a.current
        if self._ab.model is not None and (self.current.b is None or self.current.b.recommender is None):
            raise ArtifactMissing(f"ab.model = {self._ab.model!r} holds no recommendation models")

    @property
    def current(self) -> Served:
        """A's models, with B's in them."""
        a = self._a.current
        b = self._pinned or (self._holder.current if self._holder is not None else a)
        if self._made is None or self._made[0] is not a or self._made[1] is not b:
            self._made = a, b
            other = b
            if not self._ab.ranker and b.recommender is not None:
                other = replace(b, recommender=replace(b.recommender, ranker=""))
                other.warm()
            self._current = replace(a, b=other)
        return self._current

    @property
    def prepare(self) -> Callable[[Served], None] | None:
        """As :attr:`ModelHolder.prepare`; what is set is asked for the models in use at once."""
        return self._a.prepare

    @prepare.setter
    def prepare(self, prepare: Callable[[Served], None]) -> None:
        for holder in (self._a, self._holder):
            if holder is not None:
                holder.prepare = prepare
        if (b := self.current.b) is not None:
            prepare(b)

    async def watch(self, every_s: float) -> None:
        """Look for new versions of both, for ever."""
        holders = [holder for holder in (self._a, self._holder) if holder is not None]
        await asyncio.gather(*(holder.watch(every_s) for holder in holders))


class Experiment:
    """Splits the cycles of a lane; see the module's text. Of the cycle at hand it knows who is shown B.

    B is another :class:`~stream.ways.Way` on the shelf of A, with a count of its own of the same clicks.
    """

    def __init__(self, settings: Settings, a: Way) -> None:
        ab = self._ab = settings.ab
        lister = Lister(a.lister.shelf, settings.worker.viewed_item, 0 if ab.levers is None else LEVERS_OF_B)
        self._a = a
        self.b = Way.of(settings.worker, lister, k=ab.recommendations_k, learning=ab.online_learning)
        self._of_b: NDArray[np.bool_] = np.zeros(0, np.bool_)

    def lists(self, work: Sequence[ClickPart], models: Served, clicked: Clicked,
              earlier: Mapping[int, Sequence[int]], lists: Answering) -> Lists:  # fmt: skip
        """The list after each click of a cycle, each by the variant that its session or user is shown."""
        ids = [id_ for part in work for id_ in units(self._ab, part.batch.session_id, part.batch.user_id)]
        self._of_b = of_b(self._ab, ids)
        assert models.b is not None  # VariantModels sees to it
        found = Lists([[]] * len(ids), [msgspec.UNSET] * len(ids))
        for way, model, chosen in ((self._a, models, ~self._of_b), (self.b, answering(models.b), self._of_b)):
            rows = np.flatnonzero(chosen)
            if len(rows):
                own_earlier = {row: items for row, items in earlier.items() if chosen[row]}
                start_from_earlier(own_earlier, model.recommender, clicked.hashes, clicked.counts)
                some = lists(way, model.recommender, _some(clicked, rows))
                for place, row in enumerate(rows.tolist()):
                    found.items[row], found.left_out[row] = some.items[place], some.left_out[place]
        return found

    def mark(self, answer: Recommendation, models: Served, row: int, session: Session, tally: Tally) -> None:
        """Name experiment, variant and its models in an answer, and count what became of the lists before it.

        The counts are those of sessions in the cache; ``headrace ab`` counts from the topic, exactly.
        """
        variant: Variant = "B" if self._of_b[row] else "A"
        answer.experiment, answer.variant = self._ab.name, variant
        if variant == "B" and models.b is not None:
            answer.model_version = answering(models.b).version
        shown = session.shown
        if shown is None:
            tally.add(tally.ab, f"{variant} sessions")
            session.shown, session.found = array("q"), False
            shown = session.shown
        else:
            clicked = hash(answer.item_id)
            tally.add(tally.ab, f"{variant} next clicks")
            tally.add(tally.ab, f"{variant} hits", int(clicked in shown[len(shown) - session.newest :]))
            if not session.found and clicked in shown:
                session.found = True
                tally.add(tally.ab, f"{variant} sessions with a hit")
        new = array("q", [hash(item.item_id) for item in answer.items])
        shown.extend(new)
        del shown[:-_SHOWN_MAX]
        session.newest = min(len(new), _SHOWN_MAX)


def _some(clicked: Clicked, rows: NDArray[np.int64]) -> Clicked:
    bought = [clicked.bought[row] for row in rows.tolist()] if clicked.bought else []
    return Clicked(clicked.hashes[rows], clicked.counts[rows], clicked.times[rows], clicked.viewed[rows], bought)
