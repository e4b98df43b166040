"""An entity's state in plain words, read from Redis' bytes without any code of the product.

In: the bytes of a field. Out: :class:`Plain`. The format is the one that ``features/codec.py`` documents as version 3;
it is read again here from that description, so that a mistake of the codec does not hide itself.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

TILES_KEPT = 16  # of each window, up to the newest
_EVENTS, _LABELS, _MEMORY, _SECONDS, _COMPLETE = 1, 2, 4, 8, 16
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Shape:
    """What of an entity is kept: hops of its windows and label windows in ms, fields, and which sums of each."""

    hops_ms: tuple[int, ...]
    label_hops_ms: tuple[int, ...]
    fields: int
    squares: bool
    largest: bool
    others: int  # other entities that a remembered transaction names; 0 where nothing is remembered
    usual: int  # fields of which it is kept what is usual; 0 where nothing is remembered


@dataclass(slots=True)
class Tile:
    """Transactions of one hop: how many, and by field values, sum, sum of squares (0: not kept) and largest (0)."""

    count: int = 0
    fields: list[tuple[int, float, float, float]] = field(default_factory=list)


@dataclass(slots=True)
class Remembered:
    """A transaction in the memory: hash of its id, verdict (-1: none) and its time, decision, hashes of the others.

    ``level`` says how unusual its values were for its key.
    """

    event: int
    time: int
    label: int
    label_time: int
    action: int
    level: int
    others: tuple[int, ...]
    score: float
    anomaly: float


@dataclass(slots=True)
class Plain:
    """State of one entity: newest and first event, newest label, tiles by (window, tile number), the memory.

    ``latest``: the newest labels one by one, oldest first: time, 1 for a fraud, level of its transaction. ``usual``: by
    field weight, mean, variance and time of the last unusual value (0: none).
    """

    newest: int | None = None
    first: int | None = None
    label_newest: int | None = None
    tiles: dict[tuple[int, int], Tile] = field(default_factory=dict)
    labels: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    latest: list[tuple[int, int, int]] = field(default_factory=list)
    memory: list[Remembered] = field(default_factory=list)
    usual: list[tuple[int, float, float, int]] = field(default_factory=list)


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def signed(self) -> int:
        value = self.varint()
        return -((value + 1) >> 1) if value & 1 else value >> 1

    def raw(self) -> int:
        self.at += 8
        return int.from_bytes(self.data[self.at - 8 : self.at], "little")

    def double(self) -> float:
        return float(struct.unpack("<d", struct.pack("<Q", self.raw()))[0])

    def number(self, units: float) -> float:
        found = self.varint()
        if found & 1:
            return (found >> 1) / units
        if found & 2:
            c = (found >> 2) & 3
            (bits,) = struct.unpack("<q", struct.pack("<d", (found >> 4) / units))
            return float(struct.unpack("<d", struct.pack("<q", bits + (c - 2 if c < 2 else c - 1)))[0])
        return self.double()


def read_plain(data: bytes, shape: Shape) -> Plain:
    """What the bytes of an entity's field mean.

    Raises
    ------
    ValueError
        If they are of another version, or do not end where they should.
    """
    source, plain = _Bytes(data), Plain()
    if (version := source.byte()) != 3:
        raise ValueError(f"state of codec version {version}; chaos/plain.py reads version 3")
    flags = source.byte()
    unit = 1000 if flags & _SECONDS else 1
    if flags & _EVENTS:
        _read_events(source, plain, shape, unit, complete=bool(flags & _COMPLETE))
    if flags & _LABELS:
        _read_labels(source, plain, shape, unit)
    if flags & _MEMORY:
        _read_memory(source, plain, shape, unit)
        _read_usual(source, plain, shape, unit)
    if source.at != len(data):
        raise ValueError(f"state of {len(data)} bytes ends at byte {source.at}")
    return plain


def _bits(bits: int) -> list[int]:
    """Distances from the newest tile of the tiles that a map names, the oldest first."""
    return [j for j in range(TILES_KEPT - 1, -1, -1) if bits >> j & 1]


def _read_events(source: _Bytes, plain: Plain, shape: Shape, unit: int, *, complete: bool) -> None:
    newest = plain.newest = source.signed() * unit
    plain.first = newest - source.varint() * unit
    before: Tile | None = None
    for w, hop in enumerate(shape.hops_ms):
        number, told = newest // hop, source.varint()
        if told == 0:
            assert before is not None
            plain.tiles[w, number] = before
            continue
        several, back = source.varint(), 0
        for back in _bits(told):
            count = source.varint() if several >> back & 1 else 1
            tile = plain.tiles[w, number - back] = Tile(count)
            for _ in range(shape.fields):
                n = count if complete else source.varint()
                total = source.number(1e2) if n else 0.0
                squares, largest = total * total, total
                if n > 1 and shape.squares:
                    squares = source.number(1e4)
                if n > 1 and shape.largest:
                    largest = source.number(1e2)
                tile.fields.append((n, total, squares * shape.squares, largest * shape.largest))
        before = plain.tiles[w, number] if told == 1 else None


def _read_labels(source: _Bytes, plain: Plain, shape: Shape, unit: int) -> None:
    newest = plain.label_newest = source.signed() * unit + (plain.newest or 0)
    for w, hop in enumerate(shape.label_hops_ms):
        tiles, told = source.varint(), source.varint()
        for back in _bits(tiles):
            verdicts = (source.signed(), source.signed()) if told >> back & 1 else (1, 0)
            plain.labels[w, newest // hop - back] = verdicts
    time = newest
    for _ in range(source.varint()):
        told = source.varint()
        time -= (told >> 1) * unit
        plain.latest.insert(0, (time, told & 1, source.byte() if told & 1 else 0))


def _read_memory(source: _Bytes, plain: Plain, shape: Shape, unit: int) -> None:
    time, delay = plain.newest or 0, 0
    for k in range(source.varint()):
        event = source.raw()
        time += source.signed() * unit
        state = source.byte()
        told = state & 15
        label, label_time = told // 4 - 1, 0
        if label >= 0:
            if not state & 32:
                delay = source.signed() * unit
            label_time = time + delay
        level, others = source.byte(), []
        for o in range(shape.others):
            back = source.varint()
            others.append(plain.memory[k - back].others[o] if back else source.raw())
        score, anomaly = (0.0, 0.0) if state & 16 else (source.number(1e6), source.number(1e6))
        action = told % 4 - 1
        plain.memory.append(Remembered(event, time, label, label_time, action, level, tuple(others), score, anomaly))


def _read_usual(source: _Bytes, plain: Plain, shape: Shape, unit: int) -> None:
    for _ in range(shape.usual):
        weight, mean, variance, unusual = source.varint(), 0.0, 0.0, 0
        if weight:
            mean, variance = source.double(), source.double()
            unusual = (plain.newest or 0) + source.signed() * unit if source.byte() else 0
        plain.usual.append((weight, mean, variance, unusual))


def hash_text(text: str) -> int:
    """The 64-bit hash of an id: FNV-1a and the finalizer of MurmurHash3."""
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001B3 & _MASK
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        h = (h ^ h >> 33) * factor & _MASK
    return h ^ h >> 33


@dataclass(slots=True)
class Clicked:
    """A session (how many clicks, the last: hashes of event and item, time) or a user (last items, newest time)."""

    clicks: list[tuple[int, int, int]] = field(default_factory=list)
    count: int = 0
    items: list[int] = field(default_factory=list)
    bought: list[int] = field(default_factory=list)
    time: int = 0


def read_clicked(name: str, data: bytes) -> Clicked:
    """The state of a session (version 3) or of a user (version 1), as stream/sessions.py describes it."""
    session = name.startswith("session:")
    if data[0] != (3 if session else 1):
        raise ValueError(f"{name} is of version {data[0]}; chaos/plain.py reads sessions of 3 and users of 1")
    if session:
        _, count, bought = struct.unpack_from("<BIB", data)
        end = len(data) - 8 * bought
        clicks = [struct.unpack_from("<QQq", data, at) for at in range(6, end, 24)]
        return Clicked(clicks, count, bought=[*struct.unpack_from(f"<{bought}Q", data, end)])
    _, time, items, bought = struct.unpack_from("<BqBB", data)
    hashes = struct.unpack_from(f"<{items + bought}Q", data, 11)
    return Clicked(items=[*hashes[:items]], bought=[*hashes[items:]], time=time)
