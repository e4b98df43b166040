"""What the ranker sees of candidates: features against a plain reading of what they say, and where items lie."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from features.candidates import candidates
from features.described import FEATURES, WIDTH
from features.recommender import Recommender
from features.sources import CLICKS, TASTE, TASTE_DECAY
from tests.sessions import checkerboard, clicks
from trainer.clicks import grouped, queries
from trainer.sources import SourceSettings, fit_sources


@pytest.fixture(scope="module")
def model() -> Recommender:
    return Recommender.from_arrays(fit_sources(grouped(checkerboard(sessions=60)), SourceSettings()))


def asked(model: Recommender, sessions: list[list[str]]) -> list[tuple[list[int], list[int], NDArray[Any]]]:
    """By query the session's items, oldest first, the candidates, and their features."""
    q = queries(grouped(clicks(sessions)), CLICKS)
    found = model.candidates_many(q.hashes, q.counts)
    return [
        (
            model.numbers_of(q.hashes[i, : q.counts[i]]).tolist(),
            found.items[found.bounds[i] : found.bounds[i + 1]].tolist(),
            found.x[found.bounds[i] : found.bounds[i + 1]],
        )
        for i in range(len(q.counts))
    ]


def column(x: NDArray[Any], name: str) -> NDArray[Any]:
    return x[:, FEATURES.index(name)]


def listed(model: Recommender, name: str, item: int) -> dict[int, float]:
    """An item's list of a source."""
    part = slice(*getattr(model, f"{name}_offsets")[item : item + 2])
    return dict(zip(getattr(model, f"{name}_items")[part].tolist(), getattr(model, f"{name}_weights")[part].tolist(),
                    strict=True))  # fmt: skip


def test_evidence_is_what_the_lists_and_the_session_say(model: Recommender) -> None:
    sessions = [["g0-1", "g0-2", "g0-1", "g1-3"], ["g2-0", "g2-1", "g2-0", "g2-1", "g2-0", "strange"],
                ["strange", "g3-1", "g3-2"]]  # fmt: skip
    for session, items, x in asked(model, sessions):
        known = [item for item in dict.fromkeys(session) if item >= 0]
        current = session[-1]
        for item, row in zip(items, x, strict=True):
            value = dict(zip(FEATURES, row.tolist(), strict=True))
            assert value["listed"] == sum(item in listed(model, "transition", other) for other in known)
            assert value["linear_most"] == max(listed(model, "linear", other).get(item, 0.0) for other in known)
            assert value["back"] == listed(model, "transition", item).get(current, 0.0)
            steps = list(pairwise(session))
            assert value["followed_here"] == steps.count((current, item))
            holders = {s for other in known for s in postings(model, other)}
            assert value["matched"] == len(holders)
            ranks = [value[name] if value[name] < 200 else 50 for name in FEATURES if name in RANKS]
            assert value["rank_mean"] == pytest.approx(np.mean(ranks), rel=1e-6)


RANKS = {f"rank_{name}" for name in ("neighbours", "history", "lately", "linear", "endings", "transitions")}


def postings(model: Recommender, item: int) -> list[int]:
    found: list[int] = model.posting_sessions[slice(*model.posting_offsets[item : item + 2])].tolist()
    return found


def test_likeness_is_the_cosine_to_the_session_of_late_and_to_the_item_now_viewed(model: Recommender) -> None:
    for session, items, x in asked(model, [["g0-1", "g0-2", "g1-3", "g0-2", "g0-4"], ["g2-0", "strange", "g2-1", "a"]]):
        taste = sum(np.exp(-TASTE_DECAY * age) * model.tastes[item].astype(np.float64)
                    for age, item in enumerate(reversed(session)) if item >= 0)  # fmt: skip
        near = model.tastes[items] @ taste / np.linalg.norm(taste)
        assert np.allclose(column(x, "alike_session"), near, atol=1e-5)
        assert np.allclose(column(x, "alike_lead"), near - near.max(), atol=1e-5)
        assert np.allclose(column(x, "alike_current"), model.tastes[items] @ model.tastes[session[-1]], atol=1e-5)


def test_items_that_keep_the_same_company_are_alike_though_no_session_holds_both() -> None:
    walks = [[f"{name}{side}", f"{name}-x", f"{name}-y"] for name in "ab" for side in (1, 2)] * 20
    model = Recommender.from_arrays(fit_sources(grouped(clicks([*walks, ["alone"]])), SourceSettings()))
    one, other, strange, alone = (model.tastes[i] for i in model.numbers(["a1", "a2", "b1", "alone"]))
    assert one @ other > 0.99 and abs(one @ strange) < 0.01
    assert one @ one == pytest.approx(1.0, abs=1e-5) and not alone.any()


@pytest.mark.parametrize("walks", [[["a"]], [["a", "a", "a"]], [["a", "b"]] * 3, [[f"i{n}" for n in range(90)]]])
def test_a_catalogue_of_few_items_or_one_session_has_its_place_too(walks: list[list[str]]) -> None:
    tastes = fit_sources(grouped(clicks(walks)), SourceSettings())["tastes"]
    assert tastes.shape == (len({item for walk in walks for item in walk}), TASTE)
    assert np.isfinite(tastes.astype(np.float64)).all() and np.linalg.norm(tastes, axis=1).max() < 1.00001


def test_every_column_of_every_candidate_is_written(model: Recommender) -> None:
    """Rows are made in room that nothing has cleared: a column left out would hold whatever lay there."""
    q = queries(grouped(checkerboard(sessions=5, seed=9)), CLICKS)
    many, room = len(q.counts), len(q.counts) * SourceSettings().cut
    x, bounds, items = np.full((room, WIDTH), 1e300), np.zeros(many + 1, np.int64), np.zeros(room, np.int32)
    candidates(q.hashes, q.counts, *model.inside(), items, np.zeros(room, np.float32), np.zeros(many, np.int32),
               bounds, x)  # fmt: skip
    assert bounds[-1] > many
    assert not (x[: bounds[-1]] == 1e300).any() and (x[bounds[-1] :] == 1e300).all()
