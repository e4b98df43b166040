"""What an outage held up is sent again once, and by nobody else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from features.errors import ServiceUnavailable
from stream import publisher
from stream.embedded import Broker
from stream.publisher import Publisher
from stream.settings import KafkaSettings
from stream.worker import _started_producer
from tests.servers import consume_all, create_topics

PLACE = ("answers", 0)


def test_an_answer_that_an_outage_held_up_does_not_come_after_its_cycle_was_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "_STOP_S", 0.3)
    server = Broker(tmp_path)
    settings = KafkaSettings(bootstrap=server.bootstrap, idempotence=False)

    async def story() -> list[bytes | None]:
        answers = Publisher(lambda: _started_producer(settings))
        await create_topics(server.bootstrap, {"answers": 1})
        await answers.start()
        _ = await answers.acknowledged(await answers.send({PLACE: [(b"k", b"before")]}))
        server.stop()
        for held_up in (b"held up", b"joins it", b"does too"):
            async with asyncio.timeout(5):  # nobody waits for the broker but who asks for acknowledgements
                _ = await answers.send({PLACE: [(b"k", held_up)]})
        with pytest.raises(ServiceUnavailable):
            await answers.settle()
        with pytest.raises(ServiceUnavailable):
            await answers.send({PLACE: [(b"k", b"nobody sends it")]})
        server.start()  # empty
        await create_topics(server.bootstrap, {"answers": 1})
        await answers.settle()
        positions = await answers.acknowledged(await answers.send({PLACE: [(b"k", b"again")]}))
        assert positions == {PLACE: 1}
        await asyncio.sleep(1.5)  # the old producer tried every 0.1 s
        await answers.stop()
        return [record.value for record in await consume_all(server.bootstrap, PLACE[0])]

    server.start()
    try:
        assert asyncio.run(story()) == [b"again"]
    finally:
        server.stop()
