"""A made-up world written as history files: card payments with fraud, clicks in a shop, and the shop's items.

In: a seed and sizes. Out: three Parquet files, the same bytes for the same arguments and library versions. No state,
no clock: the world ends at ``end_ms``. ``docs/simulator.md`` describes it and gives its figures.

Run ``python -m trainer.simulator OUT --seed 1`` to write the files and print the figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer import simulated_clicks, simulated_payments
from trainer.draws import Ints, labelled
from trainer.simulated_clicks import CATEGORIES, DAY_MS, Clicks, Items, make_clicks, make_items
from trainer.simulated_payments import COUNTRIES, PATTERNS, SHOP_CATEGORY, Payments, World, make_world

END_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
CARDS_MIN, MERCHANTS_MIN, ITEMS_MIN = 10, 40, 200
_TIME = pa.timestamp("ms", "UTC")


@dataclass(frozen=True, slots=True)
class SimulatedFiles:
    """The three files of a simulated world."""

    transactions: Path
    clicks: Path
    items: Path


def simulate(
    out: Path,
    *,
    seed: int = 1,
    days: int = 45,
    cards: int = 1_500,
    merchants: int = 400,
    sessions_per_day: float = 340.0,
    items: int = 2_000,
    end_ms: int = END_MS,
) -> SimulatedFiles:
    """Write ``transactions.parquet``, ``clicks.parquet`` and ``items.parquet`` into the directory ``out``.

    Parameters
    ----------
    seed
        Equal arguments give equal bytes; another seed gives another world.
    days
        Length of the history, which ends just before ``end_ms`` (epoch ms). Labels arrive after that, too.
    cards, merchants
        Each card pays about once a day. At least 10 and 40.
    sessions_per_day, items
        Each session has about five clicks. At least 200 items.

    Raises
    ------
    ValueError
        If a size is below what the world needs.
    """
    for name, value, least in (("days", days, 1), ("cards", cards, CARDS_MIN), ("merchants", merchants, MERCHANTS_MIN),
                               ("items", items, ITEMS_MIN), ("sessions_per_day", sessions_per_day, 0)):  # fmt: skip
        if value < least:
            raise ValueError(f"{name} {value} is too few; at least {least}")
    start_ms = end_ms - days * DAY_MS
    first_weekday = (start_ms // DAY_MS + 3) % 7  # 1970-01-01 was a Thursday
    shop_rng, card_rng = (np.random.default_rng([seed, stream]) for stream in (1, 2))
    catalogue = make_items(shop_rng, items, days)
    clicks, bought = make_clicks(
        shop_rng, catalogue, days=days, sessions_per_day=sessions_per_day, users=cards, first_weekday=first_weekday
    )
    world = make_world(card_rng, cards, merchants)
    payments = _payments(card_rng, world, bought, days, first_weekday)
    judged_ms, verdict = simulated_payments.verdicts(card_rng, payments)
    out.mkdir(parents=True, exist_ok=True)
    return SimulatedFiles(
        _write(out / "transactions.parquet", _payments_table(world, payments, judged_ms, verdict, start_ms)),
        _write(out / "clicks.parquet", _clicks_table(shop_rng, clicks, start_ms, cards)),
        _write(out / "items.parquet", _items_table(catalogue)),
    )


def _payments(
    rng: np.random.Generator, world: World, bought: simulated_clicks.Purchases, days: int, first_weekday: int
) -> Payments:
    usual = simulated_payments.honest(rng, world, days, first_weekday)
    payments = simulated_payments.joined(
        [
            simulated_payments.compromise(rng, world, usual, days),
            simulated_payments.purchases(world, bought),
            simulated_payments.stolen_cards(rng, world, days),
            simulated_payments.card_tests(rng, world, days),
            simulated_payments.takeovers(rng, world, days),
        ]
    )
    return payments.rows(np.flatnonzero((payments.time_ms >= 0) & (payments.time_ms < days * DAY_MS)))


def _times(start_ms: int, time_ms: Ints) -> pa.Array:
    """Timestamps of milliseconds since the start; null where negative."""
    return pa.array(time_ms + start_ms, pa.int64(), mask=time_ms < 0).cast(_TIME)


def _names(names: tuple[str, ...], numbers: Ints) -> pa.Array:
    return pa.array(names).take(pa.array(numbers))


def _payments_table(world: World, payments: Payments, judged_ms: Ints, verdict: Ints, start_ms: int) -> pa.Table:
    n = len(payments.card)
    own = [f"dev-{card:05d}-{device}" for card, device in zip(payments.card.tolist(), payments.device.tolist(),
                                                             strict=True)]  # fmt: skip
    foreign = labelled("dev-x", -payments.device, 7)
    device = pc.if_else(pa.array(payments.device >= 0), pa.array(own), pa.array(foreign))
    category = _names((*simulated_payments.CATEGORIES, SHOP_CATEGORY), world.category[payments.merchant])
    return pa.table(
        {
            "event_id": pa.array(labelled("pay-", np.arange(n), 8)),
            "event_time": _times(start_ms, payments.time_ms),
            "card_id": pa.array(labelled("card-", payments.card, 5)),
            "merchant_id": pa.array(labelled("shop-", payments.merchant, 4)),
            "amount": pa.array(payments.amount),
            "device_id": pc.if_else(pa.array(payments.device == -1), None, device),
            "country": _names(COUNTRIES, payments.country),
            "category": category,
            "session_id": pa.array(labelled("s-", payments.session, 7), pa.string()),
            "user_id": pa.array(labelled("user-", np.where(payments.session >= 0, payments.card, -1), 5), pa.string()),
            "is_fraud": pa.array(verdict, pa.int8(), mask=verdict < 0),
            "label_time": _times(start_ms, judged_ms),
            "pattern": _names(PATTERNS, payments.pattern),
        }
    )


def _clicks_table(rng: np.random.Generator, clicks: Clicks, start_ms: int, users: int) -> pa.Table:
    card_kept = np.append(rng.random(users) < 0.7, False)  # the last is for those without a user
    card = np.where(card_kept[clicks.user], clicks.user, -1)
    return pa.table(
        {
            "event_id": pa.array(labelled("click-", np.arange(len(clicks.item)), 8)),
            "event_time": _times(start_ms, clicks.time_ms),
            "session_id": pa.array(labelled("s-", clicks.session, 7)),
            "user_id": pa.array(labelled("user-", clicks.user, 5), pa.string()),
            "card_id": pa.array(labelled("card-", card, 5), pa.string()),
            "item_id": pa.array(labelled("item-", clicks.item, 5)),
            "action": _names(("view", "cart", "buy"), clicks.action),
        }
    )


def _items_table(items: Items) -> pa.Table:
    return pa.table(
        {
            "item_id": pa.array(labelled("item-", np.arange(len(items.title)), 5)),
            "title": pa.array(items.title),
            "category": _names(tuple(CATEGORIES), items.category),
            "price": pa.array(np.round(items.price, 2)),
        }
    )


def _write(path: Path, table: pa.Table) -> Path:
    """Write the table beside its place and rename it there, so that a reader never sees half a file."""
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(table, partial, compression="zstd")
    partial.replace(path)
    return path


def figures(files: SimulatedFiles) -> dict[str, object]:
    """What a simulated world looks like in numbers; plain values, fit for JSON."""
    return {
        "transactions": _payment_figures(pq.read_table(files.transactions)),
        "clicks": _click_figures(pq.read_table(files.clicks)),
        "items": pq.read_metadata(files.items).num_rows,
    }


def _payment_figures(table: pa.Table) -> dict[str, object]:
    pattern = np.array(table["pattern"].to_pylist())
    fraud = pattern != "honest"
    delay = pc.subtract(table["label_time"].cast(pa.int64()), table["event_time"].cast(pa.int64()))
    days = delay.drop_null().to_numpy() / DAY_MS
    amount = table["amount"].to_numpy()
    never = pc.is_null(table["is_fraud"]).to_numpy()
    return {
        "rows": table.num_rows,
        "cards": len(table["card_id"].unique()),
        "merchants": len(table["merchant_id"].unique()),
        "from_click_sessions": table.num_rows - table["session_id"].null_count,
        "fraud_rate": _share(fraud),
        "frauds_by_pattern": {name: int((pattern == name).sum()) for name in PATTERNS[1:]},
        "median_amount_by_pattern": {
            name: round(float(np.median(amount[pattern == name])), 2) for name in PATTERNS if name in pattern
        },
        "label_delay_days": {f"p{q}": round(float(np.percentile(days, q)), 2) for q in (10, 50, 90, 99)},
        "never_labelled": {"fraud": _share(never[fraud]), "honest": _share(never[~fraud])},
    }


def _click_figures(table: pa.Table) -> dict[str, object]:
    views = table.filter(pc.equal(table["action"], "view"))
    if views.num_rows == 0:
        return {"rows": table.num_rows}
    session = np.unique(np.array(views["session_id"].to_pylist()), return_inverse=True)[1]
    item = np.unique(np.array(views["item_id"].to_pylist()), return_inverse=True)[1]
    length = np.bincount(session)
    new = len(np.unique(session * (item.max() + 1) + item))
    actions = {entry["values"]: entry["counts"] for entry in pc.value_counts(table["action"]).to_pylist()}
    return {
        "rows": table.num_rows,
        "actions": actions,
        "sessions": len(length),
        "users": len(table["user_id"].drop_null().unique()),
        "clicks_of_known_users": round(1 - table["user_id"].null_count / table.num_rows, 4),
        "views_per_session": {"mean": round(float(length.mean()), 2)}
        | {f"p{q}": int(np.percentile(length, q)) for q in (50, 90, 99)},
        "repeat_rate": round(1 - new / len(item), 4),
        "items_seen": int(item.max() + 1),
    }


def _share(mask: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float:
    return round(float(mask.mean()), 5) if len(mask) else 0.0


def main(arguments: list[str] | None = None) -> int:
    """Write a world and print its figures."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.simulator", description="Write a made-up world and print its figures."
    )
    parser.add_argument("out", type=Path, help="directory for the three Parquet files")
    for name, default in (("seed", 1), ("days", 45), ("cards", 1_500), ("merchants", 400), ("sessions-per-day", 340),
                          ("items", 2_000), ("end-ms", END_MS)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    options = vars(parser.parse_args(arguments))
    try:
        files = simulate(options.pop("out"), **options)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(figures(files), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
