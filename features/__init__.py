"""Events, state and features: the part that training and serving share. Imports nothing else of ours."""

from pathlib import Path

from features.compiled import forget_stale

forget_stale(Path(__file__).parent)
