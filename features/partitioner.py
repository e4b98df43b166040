"""Which partition a key belongs to: Kafka's default partitioner, so that any producer agrees with the worker."""

from __future__ import annotations

from features.hashing import partitions_of


def partition_of(key: bytes, partitions: int) -> int:
    """The partition in ``[0, partitions)`` that Kafka's default partitioner (murmur2) gives ``key``."""
    return int(partitions_of([key], partitions)[0])
