"""One spine, two decisions: what fraud is tied to teaches the recommender nothing, and nobody makes an item popular."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from features.recommender import Recommender
from features.schema import load_schema
from features.ties import TIE_DAYS
from stream.arrivals import Arrivals, _fields
from stream.columns import transaction_rows
from stream.settings import Settings
from tests.sessions import MINUTE_MS, QUICK, START_MS, checkerboard
from tests.test_lane import NOW_MS
from trainer.artifacts import load
from trainer.fit import FitSettings, fit
from trainer.growing import GrowingHistory
from trainer.manifest import Manifest
from trainer.ties import tied_clicks

SCHEMA = load_schema()
DAY_MS = 86_400_000
END_MS = START_MS + 2 * DAY_MS


def farm(who: dict[str, str], sessions: int = 60, start_ms: int = START_MS) -> pa.Table:
    """Sessions that view what is popular and then what they push; ``who``: fields of all clicks, with the number."""
    rows = [(n, item) for n in range(sessions) for item in ("g0-0", "g1-0", "pushed", "g2-0", "pushed", "pushed")]
    numbers = [n for n, _ in rows]

    def named(name: str) -> pa.Array:
        return pa.array([who[name].format(n) if name in who else None for n in numbers], pa.string())

    return pa.table({
        "event_id": pa.array([f"f{i}" for i in range(len(rows))]),
        "event_time": pa.array([start_ms + i * MINUTE_MS // 4 for i in range(len(rows))], pa.int64()),
        "session_id": named("session_id") if "session_id" in who else pa.array([f"farm-{n}" for n in numbers]),
        "user_id": named("user_id"),
        "card_id": named("card_id"),
        "item_id": pa.array([item for _, item in rows]),
        "action": pa.array(["view"] * len(rows)),
    })  # fmt: skip


def payments(rows: list[dict[str, object]]) -> pa.Table:
    """Judged transactions as a growing history keeps them."""
    history = GrowingHistory(SCHEMA.transactions, 10_000)
    names = {name for row in rows for name in row} - {"is_fraud", "label_time"}
    history.add_transactions({name: [row.get(name) for row in rows] for name in names})
    judged = [row for row in rows if "is_fraud" in row]
    if judged:
        history.add_labels([str(row["event_id"]) for row in judged], [int(bool(row["is_fraud"])) for row in judged],
                           [int(str(row["label_time"])) for row in judged])  # fmt: skip
    history.join_labels()
    return history.transactions


def payment(number: int, card: str, **more: object) -> dict[str, object]:
    return {"event_id": f"t{number}", "event_time": START_MS + number, "card_id": card, "merchant_id": "m",
            "amount": 5.0} | more  # fmt: skip


def fitted(tmp_path: Path, clicks: pa.Table, frauds: list[dict[str, object]], **settings: object
           ) -> tuple[Recommender, Manifest]:  # fmt: skip
    rng = np.random.default_rng(1)
    usual = [
        payment(1000 + n, f"card-{n % 50}", is_fraud=n % 20 == 0, label_time=START_MS + 5000 + n,
                amount=float(rng.uniform(1, 9) + 50 * (n % 20 == 0)))
        for n in range(400)
    ]  # fmt: skip
    clicks = clicks.sort_by("event_time")
    version = fit(payments([*usual, *frauds]), clicks, SCHEMA, tmp_path, as_of_ms=END_MS, created_ms=END_MS,
                  settings=FitSettings(threads=1, recommender=QUICK, **settings))  # type: ignore[arg-type] # fmt: skip
    found = load(tmp_path, version, SCHEMA.hash)
    assert found.recommender is not None
    return found.recommender, found.manifest


WHO = [
    ({"card_id": "stolen-{}"}, {"card_id": "stolen-{}"}),
    ({"session_id": "farm-{}"}, {"session_id": "farm-{}"}),
    ({"user_id": "farmer-{}"}, {"user_id": "farmer-{}"}),
]


@pytest.mark.parametrize(("clicked", "paid"), WHO)
@pytest.mark.parametrize("blocked", [False, True])
def test_a_click_farm_that_is_tied_to_fraud_moves_nothing_at_all(
    tmp_path: Path, clicked: dict[str, str], paid: dict[str, str], blocked: bool
) -> None:
    """The bound is zero: the model is, to the bit, the one that was fitted without the farm's clicks."""
    told: dict[str, object] = {} if blocked else {"is_fraud": True, "label_time": START_MS + 100}
    frauds = [
        payment(n, f"p-{n}", **told) | {name: text.format(n) for name, text in paid.items()} for n in range(60)
    ]  # fmt: skip
    honest, pushing = checkerboard(sessions=60), farm(clicked)
    alone, _ = fitted(tmp_path / "a", honest, frauds)
    ids = [f"t{n}" for n in range(60)] if blocked else []
    model, manifest = fitted(tmp_path / "b", pa.concat_tables([honest, pushing]), frauds, blocked=ids)
    assert manifest.training["clicks_tied_to_fraud"] == pushing.num_rows
    assert all(np.array_equal(array, model.to_arrays()[name]) for name, array in alone.to_arrays().items())
    assert model.ranker == alone.ranker


def test_a_farm_of_one_user_that_nobody_reported_counts_as_one_visitor(tmp_path: Path) -> None:
    """The bound without a label: an item's popularity moves by one visitor for each user who pushes it."""
    honest = checkerboard(sessions=60)
    model, manifest = fitted(tmp_path, pa.concat_tables([honest, farm({"user_id": "farmer"}, 200)]), [])
    assert manifest.training["clicks_tied_to_fraud"] == 0
    assert model.item_id(model.items - 1) == "pushed" and model.popularity[-1] < 0.05


def test_a_label_that_comes_later_ties_nothing_yet(tmp_path: Path) -> None:
    late = [payment(n, f"stolen-{n}", is_fraud=True, label_time=END_MS + 1) for n in range(60)]
    clicks = pa.concat_tables([checkerboard(sessions=60), farm({"card_id": "stolen-{}"})])
    _, manifest = fitted(tmp_path, clicks, late)
    assert manifest.training["clicks_tied_to_fraud"] == 0


def test_what_the_archive_says_was_blocked_is_known_to_the_history() -> None:
    class Told:
        """An archive of two days of decisions, the older of which is older than the history."""

        def dates(self, kind: str) -> list[str]:
            return ["2026-01-01", "2026-01-02"]

        def newest_dates(self, kind: str, topic: str, rows_max: int) -> list[str]:
            return ["2026-01-02"] if kind == "transactions" else []

        def of_date(self, kind: str, topic: str, date: str, columns: tuple[str, ...] = ()) -> pa.Table:
            if kind != "decisions":
                return pa.table({name: pa.array([], pa.binary()) for name in ("record_key", "record_value")} | {
                    name: pa.array([], pa.int64()) for name in ("record_offset", "record_time")})  # fmt: skip
            return pa.table({"event_id": [f"a{date}", f"b{date}", f"c{date}"], "action": ["allow", "block", "review"]})

        def end(self, topic: str, partition: int) -> int | None:
            return None

    history = GrowingHistory(SCHEMA.transactions, 100)
    Arrivals(Settings(), SCHEMA).read_archive(Told(), history, 100)  # type: ignore[arg-type]
    assert list(history.blocked) == ["b2026-01-02"]


def test_a_tied_click_ties_its_session_and_its_users_clicks_of_that_time_only() -> None:
    far = START_MS + int((TIE_DAYS + 1) * DAY_MS)
    rows = [("s1", "u1", "stolen", START_MS), ("s1", "u1", None, START_MS + 1), ("s2", "u1", None, START_MS + 2),
            ("s3", "u2", None, START_MS + 3), ("s4", "u1", None, far), ("s5", None, "stolen", far)]  # fmt: skip
    clicks = pa.table({
        "event_time": pa.array([row[3] for row in rows], pa.int64()),
        **{name: pa.array([row[at] for row in rows], pa.string())
           for at, name in enumerate(("session_id", "user_id", "card_id"))},
    })  # fmt: skip
    fraud = payments([payment(0, "stolen", is_fraud=True, label_time=START_MS), payment(1, "fine")])
    assert tied_clicks(clicks, fraud, SCHEMA.transactions).tolist() == [True, True, True, False, False, False]
    assert not tied_clicks(clicks, fraud.slice(1), SCHEMA.transactions).any()


def test_the_session_and_the_user_of_a_transaction_reach_the_history_from_its_topic() -> None:
    from features.decode import Limits, TransactionDecoder

    class Sent:
        timestamp = NOW_MS

        def __init__(self, value: bytes) -> None:
            self.value = value

    body = b'{"event_id":"e%d","event_time":%d,"card_id":"c","merchant_id":"m","amount":1.5%s}'
    sent = [Sent(body % (n, NOW_MS, more)) for n, more in enumerate((b',"session_id":"s","user_id":"u"', b"",
                                                                    b',"session_id":""'))]  # fmt: skip
    fields = _fields(TransactionDecoder(SCHEMA.transactions, Limits()), sent)
    history = GrowingHistory(SCHEMA.transactions, 10)
    history.add_transactions(transaction_rows(SCHEMA.transactions, fields))
    assert history.transactions["session_id"].to_pylist() == ["s", None, None]
    assert history.transactions["user_id"].to_pylist() == ["u", None, None]
