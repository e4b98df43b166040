"""State of entities as Redis has it, kept in this process: what was let go of the rows and may soon be asked for again.

In: names and encoded values by partition. Out: the same. State owned: the values, within a budget, first in first out.
On redelivery a partition is dropped as a whole, as its rows are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

_ENTRY_BYTES = 200  # of an entry, beside its value: a name of about 20 bytes, two objects' heads, its place in the dict


class Packed:
    """Values by partition and name.

    >>> packed = Packed()
    >>> packed.put([0, 0], [b"card:1", b"card:2"], [b"x", b"y"])
    >>> packed.lacks(0, [b"card:2", b"card:3"])
    [b'card:3']
    >>> packed.take(0, [b"card:2", b"card:3"])
    {b'card:2': b'y'}
    >>> packed.lacks(0, [b"card:2", b"card:3"])
    [b'card:2', b'card:3']
    """

    def __init__(self) -> None:
        self._values: dict[int, dict[bytes, bytes]] = {}
        self.nbytes = 0

    def put(self, partitions: Sequence[int], names: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Keep values that are not here yet."""
        for partition, name, value in zip(partitions, names, values, strict=True):
            self._values.setdefault(partition, {})[name] = value
        self.nbytes += _ENTRY_BYTES * len(values) + sum(map(len, values))

    def of(self, partition: int) -> Mapping[bytes, bytes]:
        """All of a partition."""
        return self._values.get(partition, {})

    def lacks(self, partition: int, names: Sequence[bytes]) -> list[bytes]:
        """The names of which there is nothing here."""
        held = self.of(partition)
        return [name for name in names if name not in held]

    def take(self, partition: int, names: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values that are here, and from now on are here no longer."""
        held = self.of(partition)
        found = {name: held[name] for name in names if name in held}
        for name in found:
            self._forget(partition, name)
        return found

    def hold(self, nbytes_max: int) -> None:
        """Let go of the oldest until the budget is kept."""
        if self.nbytes <= nbytes_max:
            return
        share = 1.0 - nbytes_max / self.nbytes
        for partition, held in self._values.items():
            for name in list(islice(held, int(len(held) * share) + 1)):
                self._forget(partition, name)

    def drop(self, partition: int) -> None:
        """Forget a partition."""
        for name in list(self._values.get(partition, ())):
            self._forget(partition, name)

    def _forget(self, partition: int, name: bytes) -> None:
        self.nbytes -= _ENTRY_BYTES + len(self._values[partition].pop(name))
