"""Reads Kafka, keeps state in Redis, scores, and publishes decisions. Imports ``features`` and ``trainer``'s artifacts."""
