"""Clients reach secured servers, and a server that cannot be used is refused in one clear line."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition

from features.errors import ServiceUnavailable, SettingsError, StateError
from stream.connections import check_redis, kafka_client_args, redis_client
from stream.embedded import LOOPBACK, RedisServer, free_port
from stream.offsets import offset_range
from stream.resp import Wired
from stream.settings import KafkaSettings, RedisSettings, TopicSettings
from stream.topics import check_topics, create_topics
from tests.servers import KafkaServer, fresh_name, kafka_libs

PASSWORD = "open: sesame/@%"


async def _check(settings: RedisSettings) -> None:
    client = redis_client(settings)
    try:
        await check_redis(client, settings)
        await client.set(settings.namespace, b"\xff\x00")
        assert await client.get(settings.namespace) == b"\xff\x00", "values come back as bytes"
    finally:
        await client.aclose()


async def _command(url: str, *words: str) -> None:
    client = redis_client(RedisSettings(url=url))
    await client.execute_command(*words)
    await client.aclose()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


def test_a_redis_that_evicts_nothing_is_accepted(redis: RedisServer) -> None:
    asyncio.run(_check(RedisSettings(url=redis.url)))


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "allkeys-random"])
def test_a_redis_that_may_evict_is_refused_with_the_reason_and_the_way_out(redis: RedisServer, policy: str) -> None:
    asyncio.run(_command(redis.url, "CONFIG", "SET", "maxmemory-policy", policy))
    with pytest.raises(StateError, match=f"maxmemory-policy {policy}.*state of cards.*noeviction"):
        asyncio.run(_check(RedisSettings(url=redis.url)))


def test_a_user_without_config_is_checked_by_info(redis: RedisServer) -> None:
    asyncio.run(_command(redis.url, "ACL", "SETUSER", "bob", "on", f">{PASSWORD}", "~*", "+@all", "-config"))
    bob = RedisSettings(url=redis.url, username="bob", password=PASSWORD)
    asyncio.run(_check(bob))
    asyncio.run(_command(redis.url, "CONFIG", "SET", "maxmemory-policy", "allkeys-lfu"))
    with pytest.raises(StateError, match="allkeys-lfu"):
        asyncio.run(_check(bob))


def test_a_wrong_password_is_one_line_that_does_not_show_it(redis: RedisServer) -> None:
    asyncio.run(_command(redis.url, "ACL", "SETUSER", "bob", "on", ">right", "~*", "+@all"))
    with pytest.raises(ServiceUnavailable) as caught:
        asyncio.run(_check(RedisSettings(url=redis.url, username="bob", password=PASSWORD)))
    text = str(caught.value)
    assert "redis.password" in text and "\n" not in text and PASSWORD not in text


def test_a_redis_that_is_not_there_is_one_line() -> None:
    settings = RedisSettings(url=f"redis://:{'x' * 8}@127.0.0.1:{free_port()}/0")
    with pytest.raises(ServiceUnavailable, match="is it running") as caught:
        asyncio.run(_check(settings))
    assert "\n" not in str(caught.value) and "xxxxxxxx" not in str(caught.value)


def test_an_option_that_redis_does_not_know_is_a_settings_error() -> None:
    settings = RedisSettings(url="redis://127.0.0.1:6379/0?socket_timeout=soon")
    with pytest.raises(SettingsError, match=r"redis\.url"):
        _ = redis_client(settings)


def test_certificates_that_are_none_are_a_settings_error(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("nonsense")
    with pytest.raises(SettingsError, match=r"kafka\.ssl_cafile"):
        kafka_client_args(KafkaSettings(security_protocol="SSL", ssl_cafile=file))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1 and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl on PATH to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=headrace-test",
         "-addext", f"subjectAltName=IP:{LOOPBACK}", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return cert, key


class _TlsRedis(RedisServer):
    """Redis that listens with TLS on a second port."""

    def __init__(self, directory: Path, binary: Path, certificate: tuple[Path, Path]) -> None:
        super().__init__(directory, binary=binary)
        self._certificate = certificate
        self.tls_port = free_port()

    def arguments(self) -> list[str]:
        cert, key = map(str, self._certificate)
        tls = ["--tls-port", str(self.tls_port), "--tls-auth-clients", "no"]
        return [*super().arguments(), *tls, "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert]


def test_redis_is_reached_by_tls_only_with_the_right_authority(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server on PATH; the embedded one has no TLS")
    server = _TlsRedis(tmp_path, Path(binary), certificate)
    server.start()
    try:
        url = f"rediss://{LOOPBACK}:{server.tls_port}/0"
        asyncio.run(_check(RedisSettings(url=url, ssl_cafile=certificate[0])))
        with pytest.raises(ServiceUnavailable, match="certificate"):
            asyncio.run(_check(RedisSettings(url=url)))
    finally:
        server.stop()


class _SecureKafka(KafkaServer):
    """Kafka that takes users with a password over TLS on a second port."""

    def __init__(self, directory: Path, libs: Path, certificate: tuple[Path, Path]) -> None:
        super().__init__(directory, libs)
        self.secure_port = free_port()
        self._store = directory / "store.pem"
        self._store.write_text(certificate[1].read_text() + certificate[0].read_text())

    def _settings(self) -> str:
        plain = super()._settings()
        listener = f"SASL_SSL://{LOOPBACK}:{self.secure_port}"
        lines = []
        for line in plain.splitlines():
            name = line.partition("=")[0]
            if name in ("listeners", "advertised.listeners"):
                line += f",{listener}"
            elif name == "listener.security.protocol.map":
                line += ",SASL_SSL:SASL_SSL"
            lines.append(line)
        login = "org.apache.kafka.common.security.plain.PlainLoginModule"
        lines += [
            "sasl.enabled.mechanisms=PLAIN",
            f'listener.name.sasl_ssl.plain.sasl.jaas.config={login} required user_bob="{PASSWORD}";',
            "ssl.keystore.type=PEM",
            f"ssl.keystore.location={self._store}",
        ]
        return "\n".join(lines) + "\n"


@pytest.mark.usefixtures("kafka")  # skips or fails where Kafka cannot run
def test_kafka_is_reached_by_tls_with_a_password_and_refuses_a_wrong_one(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    server = _SecureKafka(tmp_path, kafka_libs(), certificate)
    server.start()
    try:
        right = KafkaSettings(
            bootstrap=f"{LOOPBACK}:{server.secure_port}",
            security_protocol="SASL_SSL",
            sasl_username="bob",
            sasl_password=PASSWORD,
            ssl_cafile=certificate[0],
        )
        topics = TopicSettings(transactions=fresh_name("secured"))
        assert {status.state for status in asyncio.run(create_topics(right, topics))} == {"created"}
        assert asyncio.run(offset_range(right, [TopicPartition(topics.transactions, 0)])).popitem()[1] == (0, 0)
        for wrong in (replace(right, sasl_password="guess"), replace(right, ssl_cafile=None)):
            with pytest.raises(ServiceUnavailable) as caught:
                asyncio.run(check_topics(wrong, topics))
            text = str(caught.value)
            assert "\n" not in text and "guess" not in text and PASSWORD not in text
            assert "Authentication failed" in text or "certificate" in text
    finally:
        server.stop(timeout_s=20.0)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_arguments_that_are_in_the_wire_format_already_reach_redis_as_they_are(
    redis_server: RedisServer, count: int
) -> None:
    fields = {b"name\r\n%d" % i: b"value \xff\r\n$" * i for i in range(count)}
    wire = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for pair in fields.items() for word in pair)
    wired = Wired.of([Wired(count, wire), Wired(0, b"")])

    async def run() -> tuple[Any, Any]:
        client: Any = redis_client(RedisSettings(url=redis_server.url))
        try:
            async with client.pipeline(transaction=False) as pipe:
                _ = pipe.execute_command("HSET", "wired", b"first", "as text", wired)
                _ = pipe.execute_command("HGETALL", "wired")
                _ = pipe.execute_command("DEL", "wired")
                _, found, _ = await pipe.execute()
            return found, await client.config_get("maxmemory-policy")
        finally:
            await client.aclose()

    found, policy = asyncio.run(run())
    assert found == {b"first": b"as text"} | fields
    assert policy and dict(wired) == fields and len(wired) == count
