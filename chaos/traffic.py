"""Input whose sums are known: transactions, labels and clicks of cards, merchants and sessions drawn from a seed.

In: a random generator. Out: messages in the order in which they are sent, and a ledger of what each card has spent.
Amounts are multiples of 0.25, so every sum of them and of their squares is exact in floating point, in any order.
Event times only rise, so that no record is late against its entity.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from aiokafka import AIOKafkaProducer

START_MS = 1_700_000_000_000
_STEPS_MS = (0, 0, 1_000, 5_000, 30_000, 120_000)
_JUDGED, _CORRECTED, _REPEATED, _BROKEN = 0.25, 0.03, 0.01, 0.01
_BAD = (b"{", b"", b"null", b'{"event_id": "x"}')


@dataclass(frozen=True, slots=True)
class Input:
    """One record to send; ``topic`` is the field of the settings that names it."""

    topic: str
    key: bytes
    value: bytes


class Source:
    """Draws traffic; event times and ids go on from one call to the next.

    ``spent`` is the ledger: by card how many transactions count and what they add up to.
    """

    def __init__(self, random: Random, cards: int = 120, merchants: int = 40, sessions: int = 80) -> None:
        self._random = random
        self._cards, self._merchants, self._sessions = cards, merchants, sessions
        self._number = 0
        self._recent: list[dict[str, Any]] = []
        self._judged: list[tuple[dict[str, Any], bool]] = []
        self.now_ms = START_MS
        self.spent: dict[str, tuple[int, float]] = {}

    def draw(self, transactions: int, clicks: int = 0, *, labels: bool = True) -> list[Input]:
        """So many transactions, with labels of earlier ones, repeats and broken records among them, and clicks."""
        random, inputs = self._random, list[Input]()
        clicked = set(random.sample(range(transactions), min(clicks, transactions)))
        for n in range(transactions):
            inputs.append(self._pay())
            if labels and random.random() < _JUDGED:
                inputs += self._judge()
            if n in clicked:
                inputs.append(self._click())
            if random.random() < _BROKEN:
                topic = random.choice(("transactions", "labels", "clicks") if clicks else ("transactions", "labels"))
                inputs.append(Input(topic, f"card-{random.randrange(self._cards)}".encode(), random.choice(_BAD)))
        return inputs

    def _id(self, prefix: str) -> str:
        self._number += 1
        return f"{prefix}{self._number}"

    def _pay(self) -> Input:
        random = self._random
        self.now_ms += random.choice(_STEPS_MS)
        if self._recent and random.random() < _REPEATED:
            event = self._recent[-1]  # a producer's retry: nothing of this card came in between
            return Input("transactions", event["card_id"].encode(), json.dumps(event).encode())
        card = f"card-{min(int(random.expovariate(4 / self._cards)), self._cards - 1)}"
        amount = random.randrange(1, 800) / 4
        event = {
            "event_id": self._id("t"),
            "event_time": self.now_ms,
            "card_id": card,
            "merchant_id": f"shop-{random.randrange(self._merchants)}",
            "amount": amount,
        }
        count, total = self.spent.get(card, (0, 0.0))
        self.spent[card] = (count + 1, total + amount)
        self._recent = [*self._recent[-300:], event]
        return Input("transactions", card.encode(), json.dumps(event).encode())

    def _judge(self) -> list[Input]:
        random = self._random
        if self._judged and random.random() < _CORRECTED:
            event, fraud = random.choice(self._judged[-random.choice((8, 50)) :])
            fraud = not fraud
        else:
            # Of the newest most are still in the memory of their cards, of the others few.
            event, fraud = random.choice(self._recent[-random.choice((30, 300)) :]), random.random() < 0.3
        self._judged.append((event, fraud))
        label = {"event_id": event["event_id"], "label_time": self.now_ms, "card_id": event["card_id"],
                 "merchant_id": event["merchant_id"], "is_fraud": fraud}  # fmt: skip
        return [Input("labels", event["card_id"].encode(), json.dumps(label).encode())]

    def _click(self) -> Input:
        random = self._random
        number, item = random.randrange(self._sessions), random.randrange(300)
        click = {"event_id": self._id("c"), "event_time": self.now_ms, "session_id": f"s-{number}",
                 "item_id": f"item-{item}", "action": "view" if item % 5 else "buy"}  # fmt: skip
        if number % 2:  # of half of the sessions the user is known, and each user has several
            click["user_id"] = f"u-{number % 20}"
        return Input("clicks", str(click.get("user_id", click["session_id"])).encode(), json.dumps(click).encode())


class Sender(ABC):
    """Runs :meth:`_send` in a thread of its own; ``sent`` counts what it has sent."""

    def __init__(self) -> None:
        self.sent = 0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether there is something left to send."""
        return self._thread.is_alive()

    def join(self) -> None:
        """Wait until everything is acknowledged.

        Raises
        ------
        RuntimeError
            If it could not be sent.
        """
        self._thread.join()
        if self._error is not None:
            raise RuntimeError(f"the input could not be sent: {self._error!r}") from self._error

    def _run(self) -> None:
        try:
            asyncio.run(self._send())
        except BaseException as error:
            self._error = error

    @abstractmethod
    async def _send(self) -> None:
        """Send everything and wait for the acknowledgements."""


class Feeder(Sender):
    """Sends inputs at a rate, to the broker itself and by no proxy."""

    def __init__(self, bootstrap: str, topics: Any, inputs: Sequence[Input], rate: float | None) -> None:
        self._bootstrap, self._topics, self._inputs, self._rate = bootstrap, topics, inputs, rate
        super().__init__()

    async def _send(self) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self._bootstrap, enable_idempotence=True, acks="all",
                                    linger_ms=2, request_timeout_ms=120_000)  # fmt: skip
        await producer.start()
        try:
            start, pending = time.monotonic(), []
            for number, item in enumerate(self._inputs):
                if self._rate is not None and number % 8 == 0:
                    await asyncio.sleep(max(start + number / self._rate - time.monotonic(), 0))
                topic = getattr(self._topics, item.topic)
                pending.append(await producer.send(topic, item.value, item.key))
                self.sent = number + 1
            for future in pending:
                await future
        finally:
            await producer.stop()
