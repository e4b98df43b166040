"""Several commands to Redis in one round trip, be it one server or a cluster.

In: a client and commands of one key each. Out: their replies in order, or the first error. No state but the client's.
On redelivery: nothing is ever sent twice, except to where a cluster says that a key lies now, and a node that redirects
has not run the command. A command whose reply was lost is the caller's to judge.

redis-py's own pipeline of a cluster is not used: it sends ASKING and the command over two connections, so that a
redirection of a moving slot may go round in circles, and it leaves the writes to other nodes behind when one fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.asyncio.cluster import ClusterNode, PipelineCommand, RedisCluster
from redis.exceptions import AskError, ClusterDownError, MovedError, ResponseError

from stream.connections import RedisClient, cluster_seed
from stream.resp import Wired
from stream.settings import RedisSettings

_REDIRECTS_MAX = 5  # a moving slot redirects once or twice


class Command(NamedTuple):
    """The words of a command, and the one key that is among them."""

    key: str
    words: tuple[str | bytes | int | Wired, ...]


async def round_trip(client: RedisClient, settings: RedisSettings, commands: Sequence[Command]) -> list[Any]:
    """The replies to ``commands`` in their order; what fails on one key does not keep back the others.

    Raises
    ------
    redis.exceptions.RedisError
        The first error among the replies; every command may have been run.
    """
    if not commands:
        return []
    if isinstance(client, RedisCluster):
        return await _on_cluster(client, settings, commands)
    return await _on_server(client.connection_pool, commands)


async def _on_server(pool: Any, commands: Sequence[Command]) -> list[Any]:
    """One write, then a reply to each; a third less work than with redis-py's pipeline."""
    connection = await pool.get_connection()
    try:
        # A connection that broke is closed by what raises.
        await connection.send_packed_command(connection.pack_commands([c.words for c in commands]), check_health=False)
        replies, failure = [], None
        for _ in commands:
            try:
                replies.append(await connection.read_response())
            except ResponseError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return replies
    finally:
        await pool.release(connection)


async def _on_cluster(client: RedisCluster, settings: RedisSettings, commands: Sequence[Command]) -> list[Any]:
    """One write to each node at once, then a redirected command alone."""
    # All nodes that were found may have been replaced by now; the one that the settings name is asked too.
    seed, known = cluster_seed(settings), client.nodes_manager.startup_nodes.values()
    absent = seed not in {(node.host, node.port) for node in known}
    _ = await client.initialize(additional_startup_nodes_info=[seed] if absent else None)
    sent = [PipelineCommand(number, *command.words) for number, command in enumerate(commands)]
    shares: dict[str, tuple[ClusterNode, list[PipelineCommand]]] = {}
    try:
        for command, item in zip(commands, sent, strict=True):
            node = client.get_node_from_key(command.key)
            assert node is not None  # only a replica that was asked for may be None
            shares.setdefault(node.name, (node, []))[1].append(item)
        outcomes = await asyncio.gather(*(node.execute_pipeline(items) for node, items in shares.values()),
                                        return_exceptions=True)  # fmt: skip
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        for item in sent:
            for _ in range(_REDIRECTS_MAX):
                if not isinstance(item.result, AskError):
                    break
                await _follow(client, item, item.result)
        for item in sent:
            if isinstance(item.result, Exception):
                raise item.result
    except Exception as error:
        if not isinstance(error, ResponseError) or isinstance(error, ClusterDownError):
            await client.aclose()  # the next round trip asks the cluster for its layout again
        raise
    return [item.result for item in sent]


async def _follow(client: RedisCluster, item: PipelineCommand, redirect: AskError) -> None:
    """Send a command to where its key lies, for good (MOVED) or while its slot moves (ASK)."""
    if isinstance(redirect, MovedError):
        await client.nodes_manager.move_slot(redirect)
    known = client.get_node(redirect.host, redirect.port)
    options: dict[str, Any] = client.get_connection_kwargs()
    node = known or ClusterNode(redirect.host, redirect.port, **options)
    again = PipelineCommand(0, *item.args)
    asking = [] if isinstance(redirect, MovedError) else [PipelineCommand(0, "ASKING")]  # holds for one command only
    try:
        _ = await node.execute_pipeline([*asking, again])
    finally:
        if known is None:
            await node.disconnect()
    item.result = again.result
