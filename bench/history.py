"""The history that measurements replay: the Fraud Detection Handbook's file where it is, else a simulated world."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa

from features.schema import TransactionSchema, load_schema
from trainer.history import read_transactions
from trainer.simulator import simulate

HANDBOOK = Path(__file__).parents[2] / "shared" / "data" / "handbook" / "transactions.parquet"
LABEL_DELAY_MS = 7 * 86_400_000


def read_history(file: Path = HANDBOOK) -> tuple[pa.Table, TransactionSchema, str]:
    """The canonical transactions, their schema, and where they are from."""
    if file.exists():
        schema = load_schema([Path(__file__).parents[1] / "examples" / "handbook.toml"]).transactions
        return read_transactions(file, schema, LABEL_DELAY_MS), schema, "Fraud Detection Handbook"
    schema = load_schema().transactions
    with tempfile.TemporaryDirectory() as directory:
        return read_transactions(simulate(Path(directory)).transactions, schema, LABEL_DELAY_MS), schema, "simulator"
