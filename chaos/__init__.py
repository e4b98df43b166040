"""Faults injected into real workers on real Kafka and Redis, with the invariants checked after each."""
