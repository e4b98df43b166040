"""Fits models on history and publishes them as artifacts. Imports ``features`` only."""
