"""The one place that builds clients of Kafka and Redis.

In: settings. Out: clients, and errors in one clear line: whatever is worth a retry is :class:`ServiceUnavailable`.
No state.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.helpers import create_ssl_context
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from features.errors import RedisUnavailable, ServiceUnavailable, SettingsError, StateError
from stream.resp import packed
from stream.settings import KafkaSettings, RedisSettings
from stream.unpacking import bound_unpacking

RedisClient = Redis | RedisCluster
_T = TypeVar("_T")
_CLIENT_ID = "headrace"
_LOSS_QUIET_S = 60.0
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)  # between tries to reach a service
PRODUCE_BATCH_BYTES = 512 * 1024  # half of a broker's default message.max.bytes, which limits a whole batch


async def patiently(attempt: Callable[[], Awaitable[_T]], log: logging.Logger, *, back: str = "",
                    backoff_s: Sequence[float] = BACKOFF_S) -> _T:  # fmt: skip
    """Try until the service can be reached; say once that it cannot, and after a wait ``back``, if that is given."""
    tries = 0
    while True:
        try:
            result = await attempt()
        except ServiceUnavailable as error:
            if tries == 0:
                log.warning("%s; waiting for it", error)
            await asyncio.sleep(backoff_s[min(tries, len(backoff_s) - 1)])
            tries += 1
            continue
        if tries and back:
            log.warning(back)
        return result


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
    return AIOKafkaProducer(**(args | {"max_batch_size": PRODUCE_BATCH_BYTES} | extra))


def kafka_consumer(kafka: KafkaSettings, *topics: str, **extra: Any) -> AIOKafkaConsumer:
    """A consumer that commits nothing by itself; to be built inside the running loop."""
    bound_unpacking(kafka.batch_bytes_max)
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


def redis_client(redis: RedisSettings) -> RedisClient:
    """A client that returns bytes and never retries by itself; of a cluster where ``redis.cluster`` says so.

    A repeated write whose first try did arrive would lose the compare-and-set against itself, so the caller, who
    knows what may be repeated, decides. A cluster's client connects to its nodes when it is first used.

    Raises
    ------
    SettingsError
        If the URL holds an option that redis-py does not know.
    """
    extra: dict[str, Any] = {"ssl_ca_certs": str(redis.ssl_cafile)} if redis.ssl_cafile else {}
    if redis.cluster:
        extra["reinitialize_steps"] = 0  # else every fifth redirection would close all connections
    kind: type[Redis] | type[RedisCluster] = RedisCluster if redis.cluster else Redis
    try:
        client = kind.from_url(
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
    except (ValueError, TypeError, RedisClusterException) as error:
        raise SettingsError([f"redis.url: expected options that redis-py knows: {error}"]) from None
    if isinstance(client, Redis):
        pool = client.connection_pool
        pool.connection_class = packed(pool.connection_class)
    return client


def cluster_seed(redis: RedisSettings) -> tuple[str, int]:
    """Host and port in ``redis.url``: the node that a cluster is first asked at."""
    parts = urlsplit(redis.url)
    return parts.hostname or "localhost", parts.port or 6379


@asynccontextmanager
async def redis_errors(redis: RedisSettings) -> AsyncIterator[None]:
    """Turns a lost or refused connection inside the block into :class:`ServiceUnavailable` with one clear line.

    Raises
    ------
    SettingsError
        If ``redis.cluster`` does not say what the server is.
    """
    try:
        yield
    except (TimeoutError, RedisError, RedisClusterException, OSError) as error:
        where, root = redis.url.partition("?")[0], _root(error)
        reason = (" ".join(str(root).split()) or type(root).__name__).rstrip(".")
        if isinstance(root, AskError | ClusterDownError) and not redis.cluster:
            raise SettingsError([_not_alone(where)]) from None
        if "cluster support disabled" in reason:
            raise SettingsError(
                [f"redis.cluster = true: expected false: {where} is no node of a Redis Cluster"]
            ) from None
        refused = isinstance(root, AuthenticationError | NoPermissionError)
        if refused or reason.startswith(("NOAUTH", "WRONGPASS", "NOPERM")):
            hint = "check redis.username, redis.password and the user's ACL"
        else:
            hint = "is it running, and is redis.url right?"
        raise RedisUnavailable(f"Redis at {where} cannot be used: {reason}; {hint}") from None


def _root(error: BaseException) -> BaseException:
    """What a node said, where redis-py tells only that it found no cluster there."""
    cause = error.__cause__ if isinstance(error, RedisClusterException) else None
    if isinstance(cause, RedisClusterException):
        cause = cause.__context__
    return cause or error


def _not_alone(where: str) -> str:
    return f"redis.cluster = false: expected true: {where} is a node of a Redis Cluster"


async def redis_nodes(client: RedisClient) -> dict[str, dict[str, Any]]:
    """What the client's calls take to ask each server that is written to, by its address: one, or every master."""
    if not isinstance(client, RedisCluster):
        return {"": {}}
    _ = await client.initialize()
    return {str(node.name): {"target_nodes": node} for node in client.get_primaries()}


async def eviction_policy(client: RedisClient, node: Mapping[str, Any]) -> str:
    """A server's ``maxmemory-policy``, also where an ACL or a hosting company forbids CONFIG."""
    answer: Mapping[Any, Any]
    try:
        answer = await client.config_get("maxmemory-policy", **node)
    except ResponseError:
        answer = await client.info("memory", **node)
    found = {_text(name).replace("_", "-"): _text(value) for name, value in answer.items()}
    return found.get("maxmemory-policy", "unknown")


async def check_redis(client: RedisClient, redis: RedisSettings) -> None:
    """Refuses a Redis that cannot be reached, that may evict keys, or that is (not) a cluster against the settings.

    Raises
    ------
    ServiceUnavailable
        If it cannot be reached or refuses the user.
    StateError
        If a ``maxmemory-policy`` is not ``noeviction``.
    SettingsError
        If ``redis.cluster`` does not say what the server is.
    """
    where = redis.url.partition("?")[0]
    async with redis_errors(redis):
        nodes = await redis_nodes(client)
        if not redis.cluster and (await client.info("cluster")).get("cluster_enabled"):
            raise SettingsError([_not_alone(where)])
        policies = {name: await eviction_policy(client, node) for name, node in nodes.items()}
    for name, policy in policies.items():
        if policy != "noeviction":
            raise StateError(
                f"Redis at {name or where} has maxmemory-policy {policy}, so it may silently drop the state "
                "of cards when memory runs out; set it to noeviction (CONFIG SET maxmemory-policy noeviction)"
            )


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
