"""Reads Kafka, keeps state in Redis, scores and publishes. Imports ``features``, and of ``trainer`` the artifacts."""
