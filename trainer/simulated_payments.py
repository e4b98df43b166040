"""Made-up cards and merchants, how people pay, and how fraudsters do.

In: a numpy Generator and sizes. Out: payments with the pattern behind each, and when each verdict comes. Pure.

Honest payments follow each card's habits (level of amounts, hours, favourite merchants near home) and have what looks
suspicious as well: shopping sprees, journeys, large purchases, new devices. Four patterns of fraud are laid over them;
none of them shows in one payment's amount alone.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from trainer.draws import Choices, Floats, Ints, geometric_shares
from trainer.simulated_clicks import DAY_MS, WEEKDAYS, Purchases

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
PATTERNS = ("honest", "stolen_card", "compromised_terminal", "card_testing", "account_takeover")
HONEST, STOLEN, COMPROMISED, TESTING, TAKEOVER = range(5)
# Median amount, share of merchants, and how much thieves like it.
CATEGORIES: dict[str, tuple[float, float, float]] = {
    "grocery": (26.0, 0.20, 0.5), "coffee": (4.5, 0.10, 0.1), "restaurant": (23.0, 0.16, 0.3),
    "fuel": (46.0, 0.10, 1.5), "parking": (3.5, 0.06, 0.1), "pharmacy": (14.0, 0.08, 0.3),
    "fashion": (52.0, 0.10, 2.0), "home": (48.0, 0.07, 1.0), "electronics": (115.0, 0.05, 4.0),
    "travel": (150.0, 0.03, 1.5), "games": (11.0, 0.03, 2.0), "gift_cards": (40.0, 0.02, 5.0),
}  # fmt: skip
SHOP = 0  # the merchant whose clicks are simulated
SHOP_CATEGORY = "webshop"
CITY_COUNTRIES = ("NL", "NL", "NL", "BE", "BE", "DE", "DE", "DE", "FR", "FR", "ES", "IT")
CITIES = len(CITY_COUNTRIES)
ONLINE = CITIES  # in place of a city
FAR_COUNTRIES = ("US", "BR", "RO", "TR", "VN", "ZA")
COUNTRIES = (*sorted(set(CITY_COUNTRIES)), *FAR_COUNTRIES)
FAVOURITES = 12
# Hours of the two times of day at which each kind of person pays.
PERSONAS = np.array([[8.0, 18.0], [11.0, 15.0], [13.0, 20.0], [19.0, 23.0]])
STOLEN_PER_CARD_DAY = 6e-4
TESTS_PER_CARD_DAY = 3e-4
TAKEOVERS_PER_CARD_DAY = 5e-4
COMPROMISES_PER_MERCHANT_DAY = 5e-4
LABEL_DELAY_MEDIAN_DAYS = 3.0
LABEL_DELAY_SIGMA = 0.6
NEVER_JUDGED = {"fraud": 0.12, "honest": 0.04}


@dataclass(frozen=True, slots=True)
class World:
    """Cards (n) and merchants (m). A merchant's city is :data:`ONLINE` if it has none.

    Attributes
    ----------
    card_city, card_rate, card_level, card_persona : [n]
        Home, payments per day, factor on amounts, row of :data:`PERSONAS`.
    favourites : int64[n, 12]
        Merchants by how often the card goes there.
    city, category, level, appeal : [m]
        Of each merchant: place, kind, typical amount, share of the custom of its place.
    """

    card_city: Ints
    card_rate: Floats
    card_level: Floats
    card_persona: Ints
    favourites: Ints
    city: Ints
    category: Ints
    level: Floats
    appeal: Floats
    by_place: Ints
    near: Choices

    def local(self, rng: np.random.Generator, city: Ints) -> Ints:
        """A merchant for each of the places ``city``."""
        return self.by_place[self.near.draw(rng, city)]


@dataclass(frozen=True, slots=True)
class Payments:
    """Payments as columns; -1 stands for none. ``device`` >= 0 is the card's own, counted from its first."""

    time_ms: Ints
    card: Ints
    merchant: Ints
    amount: Floats
    country: Ints
    device: Ints  # the card's own by number; fraudsters' are numbered downwards from -2; -1 where nobody is online
    pattern: Ints
    session: Ints

    def rows(self, order: Ints) -> Payments:
        """The payments at ``order``."""
        return Payments(*(getattr(self, column.name)[order] for column in fields(self)))


def joined(parts: list[Payments]) -> Payments:
    """All payments of ``parts``, sorted by time (stable)."""
    every = Payments(*(np.concatenate([getattr(part, c.name) for part in parts]) for c in fields(Payments)))
    return every.rows(np.argsort(every.time_ms, kind="stable"))


def make_world(rng: np.random.Generator, cards: int, merchants: int) -> World:
    """Cards and merchants; at least one merchant in each city and :data:`ONLINE`."""
    medians, shares, _ = np.array(list(CATEGORIES.values())).T
    category = rng.choice(len(CATEGORIES), merchants, p=shares / shares.sum())
    city = np.where(rng.random(merchants) < 0.25, ONLINE, rng.integers(0, CITIES, merchants))
    city[1 : CITIES + 2] = np.arange(CITIES + 1)
    city[SHOP], category[SHOP] = ONLINE, len(CATEGORIES)
    online_kinds = np.flatnonzero([name in ("fashion", "home", "electronics", "travel", "games", "gift_cards")
                                   for name in CATEGORIES])  # fmt: skip
    online = (city == ONLINE) & (np.arange(merchants) != SHOP)
    category[online] = rng.choice(online_kinds, int(online.sum()))
    level = np.append(medians, 50.0)[category] * rng.lognormal(0.0, 0.25, merchants)
    appeal = rng.lognormal(0.0, 0.9, merchants) / np.sqrt(level)
    appeal[SHOP] = 0.0  # its payments come from its clicks
    by_place = np.argsort(city, kind="stable")
    near = Choices(appeal[by_place], np.searchsorted(city[by_place], np.arange(CITIES + 2)))
    card_city = rng.integers(0, CITIES, cards)
    places = np.repeat(card_city[:, None], FAVOURITES, axis=1)
    places[:, 2::3] = ONLINE
    return World(
        card_city=card_city,
        card_rate=np.clip(rng.gamma(2.2, 0.95 / 2.2, cards), 0.05, 5.0),
        card_level=rng.lognormal(0.0, 0.45, cards),
        card_persona=rng.integers(0, len(PERSONAS), cards),
        favourites=by_place[near.draw(rng, places.ravel())].reshape(cards, FAVOURITES),
        city=city,
        category=category,
        level=level,
        appeal=appeal,
        by_place=by_place,
        near=near,
    )


def _countries(world: World, card: Ints, merchant: Ints) -> Ints:
    """Where each payment is made: in the merchant's country, or at home if online."""
    of_city = np.array([COUNTRIES.index(name) for name in CITY_COUNTRIES])
    city = world.city[merchant]
    return np.asarray(of_city[np.where(city == ONLINE, world.card_city[card], city)], dtype=np.int64)


def _payments(world: World, time_ms: Ints, card: Ints, merchant: Ints, amount: Floats, pattern: int) -> Payments:
    none = np.full(len(card), -1, dtype=np.int64)
    device = np.where(world.city[merchant] == ONLINE, 0, -1)
    kind = np.full(len(card), pattern, dtype=np.int64)
    cents = np.asarray(np.round(np.maximum(amount, 0.5), 2), dtype=np.float64)
    return Payments(time_ms, card, merchant, cents, _countries(world, card, merchant), device, kind, none)


def _amounts(rng: np.random.Generator, world: World, card: Ints, merchant: Ints, sigma: float = 0.5) -> Floats:
    return np.asarray(world.card_level[card] * world.level[merchant] * rng.lognormal(0.0, sigma, len(card)))


def honest(rng: np.random.Generator, world: World, days: int, first_weekday: int) -> Payments:
    """What the cards' owners pay in ``days`` days: habits, sprees, journeys, and now and then something large."""
    cards = len(world.card_city)
    counts = rng.poisson(world.card_rate[:, None] * WEEKDAYS[(first_weekday + np.arange(days)) % 7])
    card, day = (np.repeat(places, counts.ravel()) for places in np.divmod(np.arange(cards * days), days))
    peak = PERSONAS[world.card_persona[card], (rng.random(len(card)) < 0.4).astype(np.int64)]
    hour = np.mod(rng.normal(peak, 2.2), 24.0)
    time_ms = (day * DAY_MS + hour * HOUR_MS).astype(np.int64)
    away = _journeys(rng, cards, days)[card, day]
    rank = np.searchsorted(np.cumsum(geometric_shares(FAVOURITES, 0.8))[:-1], rng.random(len(card)))
    way = rng.random(len(card))
    merchant = np.where(way < 0.75, world.favourites[card, rank], world.local(rng, world.card_city[card]))
    merchant = np.where(way > 0.9, world.local(rng, np.full(len(card), ONLINE)), merchant)
    merchant = np.where((away >= 0) & (way < 0.9), world.local(rng, np.maximum(away, 0)), merchant)
    large = np.where(rng.random(len(card)) < 0.02, rng.uniform(2.5, 7.0, len(card)), 1.0)
    usual = _payments(world, time_ms, card, merchant, _amounts(rng, world, card, merchant) * large, HONEST)
    usual = replace(usual, device=_own_devices(rng, usual, cards, days))
    return joined([usual, _sprees(rng, world, len(card) // 120, days)])


def _journeys(rng: np.random.Generator, cards: int, days: int) -> Ints:
    """The city in which each card is on each day, -1 at home; int64[cards, days]. One journey in two months or so."""
    away = np.full((cards, days), -1, dtype=np.int64)
    count = int(rng.poisson(cards * days / 60))
    card, start = rng.integers(0, cards, count), rng.integers(0, days, count)
    city, length = rng.integers(0, CITIES, count), rng.integers(2, 8, count)
    for night in range(7):
        out = (night < length) & (start + night < days)
        away[card[out], start[out] + night] = city[out]
    return away


def _own_devices(rng: np.random.Generator, payments: Payments, cards: int, days: int) -> Ints:
    """Online payments come from the card's newest device; one card in three gets a new one within two months."""
    changes = np.where(rng.random(cards) < days / 180, rng.uniform(0, days * DAY_MS, cards), np.inf)
    newer = (payments.time_ms >= changes[payments.card]).astype(np.int64)
    return np.where(payments.device >= 0, newer, -1)


def _sprees(rng: np.random.Generator, world: World, count: int, days: int) -> Payments:
    """Honest afternoons of shopping: some payments within hours at merchants of the home city."""
    card = rng.choice(len(world.card_city), count, p=world.card_rate / world.card_rate.sum())
    size = 3 + rng.poisson(1.0, count)
    start = rng.integers(0, days, count) * DAY_MS + rng.integers(10 * HOUR_MS, 19 * HOUR_MS, count)
    time_ms, card = _bursts(rng, start, size, 35 * MINUTE_MS), np.repeat(card, size)
    merchant = world.local(rng, world.card_city[card])
    return _payments(world, time_ms, card, merchant, 1.4 * _amounts(rng, world, card, merchant), HONEST)


def _bursts(rng: np.random.Generator, start: Ints, size: Ints, gap_ms: float) -> Ints:
    """Times of ``size`` events from each of ``start`` on, with exponential gaps of mean ``gap_ms``."""
    gaps = rng.exponential(gap_ms, int(size.sum()))
    firsts = np.cumsum(size) - size
    gaps[firsts] = 0.0
    run = np.cumsum(gaps)
    return np.asarray(np.repeat(start, size) + (run - np.repeat(run[firsts], size)), dtype=np.int64)


def _loot(rng: np.random.Generator, world: World, count: int, *, online: bool) -> Ints:
    """Merchants that thieves choose: by what can be turned into money, wherever it is."""
    liking = np.append([liking for _, _, liking in CATEGORIES.values()], 1.0)[world.category]
    weight = np.where((world.city == ONLINE) | (not online), liking * np.sqrt(world.appeal + 0.05), 0.0)
    return np.asarray(rng.choice(len(weight), count, p=weight / weight.sum()), dtype=np.int64)


def stolen_cards(rng: np.random.Generator, world: World, days: int) -> Payments:
    """A card is stolen: a handful of payments within hours at merchants it has never seen, at any hour."""
    count = int(rng.poisson(STOLEN_PER_CARD_DAY * days * len(world.card_city)))
    size = 3 + rng.poisson(2.5, count)
    time_ms = _bursts(rng, rng.integers(0, days * DAY_MS, count), size, 25 * MINUTE_MS)
    card = np.repeat(rng.integers(0, len(world.card_city), count), size)
    merchant = _loot(rng, world, len(card), online=False)
    amount = _amounts(rng, world, card, merchant) * rng.uniform(0.9, 2.2, len(card))
    thief = -2 - np.repeat(np.arange(count), size)
    payments = _payments(world, time_ms, card, merchant, amount, STOLEN)
    return replace(payments, device=np.where(payments.device >= 0, thief, -1))


def compromise(rng: np.random.Generator, world: World, payments: Payments, days: int) -> Payments:
    """Some terminals are tampered with for one to two weeks: three payments in ten there are then fraud.

    Amounts and hours stay those of honest payments; only the merchant's own history of frauds tells.
    """
    count = max(round(COMPROMISES_PER_MERCHANT_DAY * days * len(world.city)), 1)
    custom = np.where(world.city == ONLINE, 0, np.bincount(payments.merchant, minlength=len(world.city)))
    busy = np.flatnonzero(custom >= np.median(custom[world.city != ONLINE]))
    merchant = rng.choice(busy, count, replace=count > len(busy))
    # Spread over the whole time, so that every stretch of days has some that are new.
    start = ((np.arange(count) + rng.random(count)) / count * (days + 8) - 10) * DAY_MS
    end = start + rng.uniform(8, 16, count) * DAY_MS
    hit = np.zeros(len(payments.card), dtype=bool)
    for place in range(count):  # a few dozen at most
        inside = (payments.time_ms >= start[place]) & (payments.time_ms < end[place])
        hit |= inside & (payments.merchant == merchant[place])
    hit &= (rng.random(len(hit)) < 0.3) & (payments.pattern == HONEST)
    return replace(payments, pattern=np.where(hit, COMPROMISED, payments.pattern))


def card_tests(rng: np.random.Generator, world: World, days: int) -> Payments:
    """Numbers of stolen cards are tried with tiny amounts at one web merchant; those that work pay something large.

    Campaigns test two or three cards within the hour, from one device abroad.
    """
    count = int(rng.poisson(TESTS_PER_CARD_DAY * days * len(world.card_city)))
    campaign = np.arange(count) * 2 // 5
    begin = rng.integers(0, days * DAY_MS, count)[campaign] + rng.exponential(20 * MINUTE_MS, count).astype(np.int64)
    card = rng.integers(0, len(world.card_city), count)
    tiny = 3 + rng.poisson(2.0, count)
    tried = np.repeat(card, tiny)
    time_ms = _bursts(rng, begin, tiny, 45_000)
    trial_shop = _loot(rng, world, count, online=True)[campaign]
    amount = rng.uniform(0.5, 3.0, len(tried))
    tests = _payments(world, time_ms, tried, np.repeat(trial_shop, tiny), amount, TESTING)
    later = time_ms[np.cumsum(tiny) - 1] + rng.integers(4 * MINUTE_MS, 90 * MINUTE_MS, count)
    haul = np.maximum(world.card_level[card], 0.7) * rng.uniform(120.0, 480.0, count)
    hauls = _payments(world, later, card, _loot(rng, world, count, online=True), haul, TESTING)
    country = (len(COUNTRIES) - 1 - rng.integers(0, len(FAR_COUNTRIES), count))[campaign]
    device = -1_000_000 - campaign
    return joined([
        replace(tests, country=np.repeat(country, tiny), device=np.repeat(device, tiny)),
        replace(hauls, country=country, device=device),
    ])  # fmt: skip


def takeovers(rng: np.random.Generator, world: World, days: int) -> Payments:
    """An account is taken over: a device never seen before shops online for a day or two at plausible amounts."""
    count = int(rng.poisson(TAKEOVERS_PER_CARD_DAY * days * len(world.card_city)))
    size = 3 + rng.poisson(2.0, count)
    card = np.repeat(rng.integers(0, len(world.card_city), count), size)
    time_ms = _bursts(rng, rng.integers(0, days * DAY_MS, count), size, 5 * HOUR_MS)
    merchant = _loot(rng, world, len(card), online=True)
    amount = _amounts(rng, world, card, merchant) * rng.uniform(0.8, 1.9, len(card))
    payments = _payments(world, time_ms, card, merchant, amount, TAKEOVER)
    abroad = np.where(rng.random(count) < 0.5, len(COUNTRIES) - 1 - rng.integers(0, len(FAR_COUNTRIES), count), -1)
    abroad = np.repeat(abroad, size)
    device = -2_000_000 - np.repeat(np.arange(count), size)
    return replace(payments, device=device, country=np.where(abroad >= 0, abroad, payments.country))


def purchases(world: World, bought: Purchases) -> Payments:
    """The payments for what was bought in click sessions; user i pays with card i."""
    shop = np.full(len(bought.user), SHOP, dtype=np.int64)
    return replace(_payments(world, bought.time_ms, bought.user, shop, bought.amount, HONEST), session=bought.session)


def verdicts(rng: np.random.Generator, payments: Payments) -> tuple[Ints, Ints]:
    """When each payment is judged (ms since the start, -1 = never) and what is found (1 fraud, 0 good, -1 never)."""
    fraud = payments.pattern != HONEST
    delay = rng.lognormal(np.log(LABEL_DELAY_MEDIAN_DAYS), LABEL_DELAY_SIGMA, len(fraud)) * DAY_MS
    never = rng.random(len(fraud)) < np.where(fraud, NEVER_JUDGED["fraud"], NEVER_JUDGED["honest"])
    judged_ms = payments.time_ms + np.maximum(delay, HOUR_MS).astype(np.int64)
    return np.where(never, -1, judged_ms), np.where(never, -1, fraud.astype(np.int64))
