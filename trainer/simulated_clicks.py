"""A made-up shop and the people who click through it.

In: a numpy Generator and sizes. Out: a catalogue, clicks, and the purchases that the payments are made for. Pure.

What a recommender can learn here: from an item people mostly go on to one of its ten *followers* (items of like style
in its category, and two accessories), else to something popular in the category, back to an item seen before, or to
something popular anywhere. What it must keep up with: popularity rises and falls within days, and items are launched.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.draws import Choices, Floats, Ints, geometric_shares

DAY_MS = 86_400_000
CLICKS_MAX = 40
FOLLOWERS = 8
ACCESSORIES = 2
VIEW, CART, BUY = 0, 1, 2
CATEGORY_ITEMS_MIN = 10
# What the next click is: a follower, popular in the category, seen before in the session, popular anywhere.
NEXT_SHARES = (0.60, 0.17, 0.11, 0.12)
HOURS = np.array([2, 1, 1, 1, 1, 2, 4, 6, 8, 9, 9, 9, 10, 9, 8, 8, 9, 10, 12, 14, 15, 14, 9, 5], dtype=np.float64)
WEEKDAYS = np.array([1.0, 0.95, 0.95, 1.0, 1.05, 1.1, 1.2])  # from Monday

# Category: median price, then what is sold in it.
CATEGORIES: dict[str, tuple[float, tuple[str, ...]]] = {
    "audio": (79.0, ("Headphones", "Speaker", "Turntable", "Microphone", "Earbuds", "Radio")),
    "bags": (48.0, ("Backpack", "Tote", "Satchel", "Weekender", "Wallet", "Pouch")),
    "bath": (17.0, ("Towel", "Soap Dish", "Bath Mat", "Robe", "Brush", "Shower Curtain")),
    "bicycles": (65.0, ("Helmet", "Saddle", "Pannier", "Bell", "Lock", "Tail Light")),
    "books": (15.0, ("Atlas", "Cookbook", "Novel", "Field Guide", "Notebook", "Almanac")),
    "coffee": (26.0, ("Kettle", "Grinder", "Dripper", "Moka Pot", "Mug", "Scale")),
    "footwear": (72.0, ("Sneakers", "Boots", "Sandals", "Loafers", "Slippers", "Clogs")),
    "games": (29.0, ("Board Game", "Puzzle", "Card Game", "Dice Set", "Chess Set", "Yo-Yo")),
    "garden": (22.0, ("Planter", "Trowel", "Watering Can", "Seed Box", "Lantern", "Bird Feeder")),
    "kitchen": (34.0, ("Skillet", "Knife", "Cutting Board", "Saucepan", "Teapot", "Mixing Bowl")),
    "knitwear": (58.0, ("Cardigan", "Pullover", "Scarf", "Beanie", "Mittens", "Socks")),
    "lighting": (52.0, ("Desk Lamp", "Floor Lamp", "Pendant", "Night Light", "Wall Lamp", "Candle Holder")),
    "outdoors": (88.0, ("Tent", "Sleeping Bag", "Head Torch", "Camp Stove", "Hammock", "Flask")),
    "stationery": (9.0, ("Pen", "Sketchbook", "Ink", "Ruler", "Folder", "Stapler")),
    "toys": (21.0, ("Train Set", "Building Blocks", "Plush Bear", "Kite", "Dollhouse", "Spinning Top")),
    "watches": (120.0, ("Wristwatch", "Wall Clock", "Alarm Clock", "Watch Strap", "Stopwatch", "Watch Box")),
}
MAKERS = (
    "Aldra", "Bexley", "Corvane", "Dunmere", "Elsk", "Fennick", "Galdor", "Hestia", "Ivarro", "Jorun", "Kestor",
    "Lumen & Lye", "Marrow", "Nordby", "Ostra", "Pellam", "Quill", "Rosk", "Sorrel", "Tamsin", "Umbra", "Velk",
    "Wexmoor", "Yarrow",
)  # fmt: skip
STYLES = (
    "Amber", "Ash", "Birch", "Classic", "Compact", "Copper", "Coral", "Dusk", "Everyday", "Fern", "Folding", "Granite",
    "Harbour", "Indigo", "Ivory", "Little", "Moss", "Northern", "Slate", "Travel",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Items:
    """The catalogue of n items, numbered so that each category is one range.

    Attributes
    ----------
    category : int64[n]
        Index into :data:`CATEGORIES`.
    price : float64[n]
    title : list[str]
    followers : int64[n, 10]
        What people look at next, likeliest first.
    launch_day : int64[n]
        0 for what was always there.
    popularity : float64[days, n]
        Weight by day; 0 before the launch.
    """

    category: Ints
    price: Floats
    title: list[str]
    followers: Ints
    launch_day: Ints
    popularity: Floats


@dataclass(frozen=True, slots=True)
class Clicks:
    """Clicks sorted by time: ms since the start, session (numbered by start), user (-1 = unknown), item, action."""

    time_ms: Ints
    session: Ints
    user: Ints
    item: Ints
    action: Ints


@dataclass(frozen=True, slots=True)
class Purchases:
    """One row per session that bought: ms since the start, session, user, amount."""

    time_ms: Ints
    session: Ints
    user: Ints
    amount: Floats


def make_items(rng: np.random.Generator, count: int, days: int) -> Items:
    """A catalogue of ``count`` items with its followers and its popularity on each of ``days`` days."""
    kinds = len(CATEGORIES)
    sizes = CATEGORY_ITEMS_MIN + rng.multinomial(count - kinds * CATEGORY_ITEMS_MIN, rng.dirichlet(np.full(kinds, 6.0)))
    category = np.repeat(np.arange(kinds), sizes)
    medians = np.array([median for median, _ in CATEGORIES.values()])
    price = np.round(medians[category] * rng.lognormal(0.0, 0.5, count)) - 0.05
    launch_day = np.where(rng.random(count) < 0.15, rng.integers(0, max(days * 9 // 10, 1), count), 0)
    day = np.arange(days)[:, None]
    swing = np.exp(-(((day - rng.uniform(0, days, count)) / rng.uniform(3, 12, count)) ** 2))
    log_weight = rng.normal(0.0, 1.0, count) + rng.normal(0.0, 1.5, count) * swing
    fresh = np.where((launch_day > 0) & (day < launch_day + 5), np.log(4.0), 0.0)
    popularity = np.where(day >= launch_day, np.exp(log_weight + fresh), 0.0)
    # One item of each category has always been there, so that there is something to look at on every day.
    launch_day[np.cumsum(sizes) - 1] = 0
    popularity[:, np.cumsum(sizes) - 1] = np.maximum(popularity[:, np.cumsum(sizes) - 1], 1.0)
    return Items(category, np.maximum(price, 1.95), _titles(rng, sizes), _followers(rng, sizes), launch_day, popularity)


def _titles(rng: np.random.Generator, sizes: Ints) -> list[str]:
    titles: list[str] = []
    for size, (_, nouns) in zip(sizes.tolist(), CATEGORIES.values(), strict=True):
        combinations = len(MAKERS) * len(STYLES) * len(nouns)
        shuffled = rng.permutation(combinations)
        for number in range(size):
            rest, noun = divmod(int(shuffled[number % combinations]), len(nouns))
            maker, style = divmod(rest, len(STYLES))
            series = f" {number // combinations + 1}" if number >= combinations else ""
            titles.append(f"{MAKERS[maker]} {STYLES[style]} {nouns[noun]}{series}")
    return titles


def _followers(rng: np.random.Generator, sizes: Ints) -> Ints:
    """Each item's nearest by style in its category, and accessories from the next category; int64[n, 10]."""
    starts = np.cumsum(sizes) - sizes
    followers = np.empty((int(sizes.sum()), FOLLOWERS + ACCESSORIES), dtype=np.int64)
    for kind, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
        style = rng.normal(size=(size, 2))
        distance = np.square(style[:, None, :] - style[None, :, :]).sum(axis=2)
        np.fill_diagonal(distance, np.inf)
        followers[start : start + size, :FOLLOWERS] = start + np.argsort(distance, axis=1)[:, :FOLLOWERS]
        other = (kind + 1) % len(sizes)
        accessories = rng.integers(starts[other], starts[other] + sizes[other], (size, ACCESSORIES))
        followers[start : start + size, FOLLOWERS:] = accessories
    return followers


def make_clicks(
    rng: np.random.Generator, items: Items, *, days: int, sessions_per_day: float, users: int, first_weekday: int
) -> tuple[Clicks, Purchases]:
    """Sessions of ``users`` known and many unknown people over ``days`` days, and what they bought.

    Parameters
    ----------
    first_weekday
        Weekday of day 0; 0 is Monday.
    """
    weekday = WEEKDAYS[(first_weekday + np.arange(days)) % 7]
    day = np.repeat(np.arange(days), rng.poisson(sessions_per_day * weekday))
    hour = rng.choice(24, len(day), p=HOURS / HOURS.sum())
    start = day * DAY_MS + hour * 3_600_000 + rng.integers(0, 3_600_000, len(day))
    order = np.argsort(start, kind="stable")
    day, start = day[order], start[order]
    keenness = rng.gamma(0.8, size=users)
    user = np.where(rng.random(len(day)) < 0.55, rng.choice(users, len(day), p=keenness / keenness.sum()), -1)
    length = np.minimum(rng.geometric(0.22, len(day)), CLICKS_MAX)
    seen = _walk(rng, items, day, length, _interests(rng, users)[user])
    dwell = np.minimum(rng.lognormal(np.log(25_000), 1.0, seen.shape), 1_200_000).astype(np.int64) + 1_000
    time = start[:, None] + np.cumsum(dwell, axis=1) - dwell[:, :1]
    shown = np.arange(seen.shape[1]) < length[:, None]
    session = np.repeat(np.arange(len(day)), length)
    views = Clicks(time[shown], session, user[session], seen[shown], np.full(len(session), VIEW, dtype=np.int64))
    carts = _carts(rng, views)
    buys = _buys(rng, carts, last_ms=time[np.arange(len(day)), length - 1])
    return _by_time([views, carts, buys], days * DAY_MS), _purchases(rng, buys, items)


def _interests(rng: np.random.Generator, users: int) -> Ints:
    """Two categories for each user, and (-1, -1) in the last row for the unknown; int64[users + 1, 2]."""
    return np.concatenate([rng.integers(0, len(CATEGORIES), (users, 2)), [[-1, -1]]])


def _walk(rng: np.random.Generator, items: Items, day: Ints, length: Ints, interests: Ints) -> Ints:
    """The items of each session in order; int64[sessions, longest], of which ``length`` count in each row."""
    count, kinds = len(items.category), len(CATEGORIES)
    firsts = np.searchsorted(items.category, np.arange(kinds))
    within = Choices(
        items.popularity.ravel(),
        np.append((np.arange(len(items.popularity))[:, None] * count + firsts).ravel(), items.popularity.size),
    )
    anywhere = Choices(items.popularity.ravel(), np.arange(len(items.popularity) + 1) * count)
    follow_edges = np.cumsum(geometric_shares(FOLLOWERS + ACCESSORIES, 0.75))
    seen = np.zeros((len(day), int(length.max(initial=1))), dtype=np.int64)
    interest = np.where(rng.random(len(day)) < 0.7, interests[np.arange(len(day)), rng.integers(0, 2, len(day))], -1)
    by_interest = within.draw(rng, day * kinds + np.maximum(interest, 0)) % count
    seen[:, 0] = np.where(interest >= 0, by_interest, anywhere.draw(rng, day) % count)
    for step in range(1, seen.shape[1]):
        rows = np.flatnonzero(length > step)
        today, current = day[rows], seen[rows, step - 1]
        rank = np.minimum(np.searchsorted(follow_edges, rng.random(len(rows))), len(follow_edges) - 1)
        follower = items.followers[current, rank]
        popular = within.draw(rng, today * kinds + items.category[current]) % count
        # What is not launched yet cannot be looked at.
        follower = np.where(items.launch_day[follower] <= today, follower, popular)
        earlier = seen[rows, rng.integers(0, step, len(rows))]
        kind = np.searchsorted(np.cumsum(NEXT_SHARES)[:-1], rng.random(len(rows)), side="right")
        seen[rows, step] = np.choose(kind, [follower, popular, earlier, anywhere.draw(rng, today) % count])
    return seen


def _take(clicks: Clicks, rows: Ints, time_ms: Ints, action: int) -> Clicks:
    same = np.full(len(rows), action, dtype=np.int64)
    return Clicks(time_ms, clicks.session[rows], clicks.user[rows], clicks.item[rows], same)


def _carts(rng: np.random.Generator, views: Clicks) -> Clicks:
    """One view in eighteen puts the item into the cart within a second, before the next view; once per session."""
    chosen = np.flatnonzero(rng.random(len(views.item)) < 1 / 18)
    pair = views.session[chosen] * (views.item.max(initial=0) + 1) + views.item[chosen]
    chosen = np.sort(chosen[np.unique(pair, return_index=True)[1]])
    return _take(views, chosen, views.time_ms[chosen] + rng.integers(200, 1_000, len(chosen)), CART)


def _buys(rng: np.random.Generator, carts: Clicks, last_ms: Ints) -> Clicks:
    """Half of the known users who filled a cart buy all of it, half a minute or so after the last view."""
    buying = rng.random(len(last_ms)) < 0.5
    rows = np.flatnonzero((carts.user >= 0) & buying[carts.session])
    pause = rng.integers(15_000, 60_000, len(last_ms))
    return _take(carts, rows, (last_ms + pause)[carts.session[rows]], BUY)


def _by_time(parts: list[Clicks], end_ms: int) -> Clicks:
    columns = [np.concatenate([getattr(part, name) for part in parts]) for name in Clicks.__slots__]
    order = np.argsort(columns[0], kind="stable")
    order = order[columns[0][order] < end_ms]
    return Clicks(*(column[order] for column in columns))


def _purchases(rng: np.random.Generator, buys: Clicks, items: Items) -> Purchases:
    session, first, which = np.unique(buys.session, return_index=True, return_inverse=True)
    amount = np.bincount(which, weights=items.price[buys.item], minlength=len(session))
    time_ms = buys.time_ms[first] + rng.integers(500, 4_000, len(session))
    return Purchases(time_ms, session, buys.user[first], np.round(amount, 2))
