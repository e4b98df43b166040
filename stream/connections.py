"""The one place that builds clients of Kafka and Redis.

In: settings. Out: clients, and errors in one clear line: whatever is worth a retry is :class:`ServiceUnavailable`.
No state.
"""

from __future__ import annotations

import logging
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.helpers import create_ssl_context
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from features.errors import RedisUnavailable, ServiceUnavailable, SettingsError, StateError
from stream.resp import packed
from stream.settings import KafkaSettings, RedisSettings

RedisClient = Redis
_CLIENT_ID = "headrace"
_LOSS_QUIET_S = 60.0
_PRODUCE_BATCH_BYTES = 512 * 1024  # half of a broker's default message.max.bytes, which limits a whole batch


def kafka_client_args(kafka: KafkaSettings) -> dict[str, Any]:
    """The keyword arguments that aiokafka's producer, consumer and admin client share.

    Raises
    ------
    SettingsError
        If a certificate or key cannot be loaded.
    """
    args: dict[str, Any] = {
        "bootstrap_servers": [part.strip() for part in kafka.bootstrap.split(",")],
        "client_id": _CLIENT_ID,
        "request_timeout_ms": int(kafka.request_timeout_s * 1000),
        "security_protocol": kafka.security_protocol,
    }
    if kafka.security_protocol.startswith("SASL"):
        args |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.sasl_username,
            "sasl_plain_password": kafka.sasl_password,
        }
    if kafka.security_protocol.endswith("SSL"):
        files = {"cafile": kafka.ssl_cafile, "certfile": kafka.ssl_certfile, "keyfile": kafka.ssl_keyfile}
        try:
            args["ssl_context"] = create_ssl_context(**{name: path and str(path) for name, path in files.items()})
        except (OSError, ssl.SSLError) as error:
            named = ", ".join(f"kafka.ssl_{name} = '{path}'" for name, path in files.items() if path)
            raise SettingsError([f"{named}: expected PEM files that belong together: {error}"]) from None
    return args


def kafka_producer(kafka: KafkaSettings, **extra: Any) -> AIOKafkaProducer:
    """A producer whose acknowledgement means that the record is safe; to be built inside the running loop."""
    args = kafka_client_args(kafka) | {"acks": "all", "enable_idempotence": kafka.idempotence}
    return AIOKafkaProducer(**(args | {"max_batch_size": _PRODUCE_BATCH_BYTES} | extra))


def kafka_consumer(kafka: KafkaSettings, *topics: str, **extra: Any) -> AIOKafkaConsumer:
    """A consumer that commits nothing by itself; to be built inside the running loop."""
    args = kafka_client_args(kafka) | {"enable_auto_commit": False, "auto_offset_reset": "earliest"}
    return AIOKafkaConsumer(*topics, **(args | extra))


@asynccontextmanager
async def kafka_admin(kafka: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    """A started admin client, closed at the end; failures are :class:`ServiceUnavailable`."""
    async with kafka_errors(kafka):
        client = AIOKafkaAdminClient(**kafka_client_args(kafka))
        try:
            await client.start()
            yield client
        finally:
            await client.close()


class _LastWords(logging.Handler):
    """Keeps the last warning of aiokafka, which logs why a connection failed but does not raise it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


@asynccontextmanager
async def kafka_errors(kafka: KafkaSettings) -> AsyncIterator[None]:
    """Turns every failure of Kafka inside the block into :class:`ServiceUnavailable` with one clear line."""
    words, log = _LastWords(), logging.getLogger("aiokafka")
    log.addHandler(words)
    try:
        yield
    except (TimeoutError, KafkaError, OSError) as error:
        reason = " ".join(f"{words.text or error}".split()).rstrip(":; ") or type(error).__name__
        if isinstance(error, TimeoutError) or reason.endswith('"'):  # aiokafka names only the address
            reason += " gave no answer that Kafka would give; does something else listen there"
        raise ServiceUnavailable(
            f"Kafka at {kafka.bootstrap} ({kafka.security_protocol}) cannot be used: {reason}; "
            "is it running, and are kafka.bootstrap and the kafka.s* settings right?"
        ) from None
    finally:
        log.removeHandler(words)


class _Losses(logging.Handler):
    """Hears that aiokafka finds no broker any more, and tells it, but not every 100 ms as aiokafka does."""

    def __init__(self, tell: Callable[[str], None], text: str) -> None:
        super().__init__(logging.ERROR)
        self._tell = tell
        self._text = text
        self._told_s = -_LOSS_QUIET_S

    def emit(self, record: logging.LogRecord) -> None:
        now_s = time.monotonic()
        if "Unable to update metadata" in record.getMessage() and now_s - self._told_s >= _LOSS_QUIET_S:
            self._told_s = now_s
            self._tell(self._text)


@contextmanager
def kafka_losses(kafka: KafkaSettings, tell: Callable[[str], None] | None = None) -> Iterator[None]:
    """Says on standard error, or to ``tell``, when a connected client inside the block loses Kafka and waits for it."""
    handler = _Losses(
        tell or (lambda text: print(text, file=sys.stderr)),
        f"headrace: Kafka at {kafka.bootstrap} cannot be reached; waiting for it",
    )
    log = logging.getLogger("aiokafka")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def redis_client(redis: RedisSettings) -> Redis:
    """A client that returns bytes and never retries by itself.

    A repeated write whose first try did arrive would lose the compare-and-set against itself, so the caller, who
    knows what may be repeated, decides.

    Raises
    ------
    SettingsError
        If the URL holds an option that redis-py does not know.
    """
    extra: dict[str, Any] = {"ssl_ca_certs": str(redis.ssl_cafile)} if redis.ssl_cafile else {}
    try:
        client = Redis.from_url(
            redis.url,
            username=redis.username,
            password=redis.password,
            socket_timeout=redis.timeout_s,
            socket_connect_timeout=redis.timeout_s,
            client_name=_CLIENT_ID,
            decode_responses=False,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            **extra,
        )
    except (ValueError, TypeError) as error:
        raise SettingsError([f"redis.url: expected options that redis-py knows: {error}"]) from None
    pool = client.connection_pool
    pool.connection_class = packed(pool.connection_class)
    return client


@asynccontextmanager
async def redis_errors(redis: RedisSettings) -> AsyncIterator[None]:
    """Turns a lost or refused connection inside the block into :class:`ServiceUnavailable` with one clear line."""
    try:
        yield
    except (TimeoutError, RedisError, OSError) as error:
        where = redis.url.partition("?")[0]
        refused = isinstance(error, AuthenticationError | NoPermissionError)
        if refused or str(error).startswith(("NOAUTH", "WRONGPASS", "NOPERM")):
            hint = "check redis.username, redis.password and the user's ACL"
        else:
            hint = "is it running, and is redis.url right?"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RedisUnavailable(f"Redis at {where} cannot be used: {reason.rstrip('.')}; {hint}") from None


async def eviction_policy(client: Redis) -> str:
    """The server's ``maxmemory-policy``, also where an ACL or a hosting company forbids CONFIG."""
    answer: Mapping[Any, Any]
    try:
        answer = await client.config_get("maxmemory-policy")
    except ResponseError:
        answer = await client.info("memory")
    found = {_text(name).replace("_", "-"): _text(value) for name, value in answer.items()}
    return found.get("maxmemory-policy", "unknown")


async def check_redis(client: Redis, redis: RedisSettings) -> None:
    """Refuses a Redis that cannot be reached or that may evict keys.

    Raises
    ------
    ServiceUnavailable
        If it cannot be reached or refuses the user.
    StateError
        If ``maxmemory-policy`` is not ``noeviction``.
    """
    async with redis_errors(redis):
        policy = await eviction_policy(client)
    if policy != "noeviction":
        raise StateError(
            f"Redis at {redis.url.partition('?')[0]} has maxmemory-policy {policy}, so it may silently drop the state "
            "of cards when memory runs out; set it to noeviction (CONFIG SET maxmemory-policy noeviction)"
        )


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
