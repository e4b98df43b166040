"""The workers' consumer group as Kafka knows it: who is in it, and what it has committed.

In: settings. Out: offsets, or a refusal. No state; nothing is changed.
"""

from __future__ import annotations

from features.errors import StateError
from stream.connections import kafka_admin
from stream.lane import Target
from stream.settings import Settings


async def refuse_while_worked(settings: Settings) -> None:
    """Refuse while the group has members.

    Raises
    ------
    StateError
        If it has.
    """
    group = settings.worker.group
    async with kafka_admin(settings.kafka) as admin:
        for response in await admin.describe_consumer_groups([group]):
            for described in response.groups:
                members = [f"{member[1]} at {member[2]}" for member in described[5]]
                if members:
                    raise StateError(
                        f"{len(members)} workers of group {group} run ({', '.join(members[:5])}); stop them first. One "
                        "that was killed counts until worker.session_timeout_s has passed"
                    )


async def committed_offsets(settings: Settings) -> dict[Target, int]:
    """What the group has committed, by input partition."""
    async with kafka_admin(settings.kafka) as admin:
        found = await admin.list_consumer_group_offsets(settings.worker.group)
    return {(tp.topic, tp.partition): at.offset for tp, at in found.items() if at.offset >= 0}
