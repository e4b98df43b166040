"""``headrace tune``: looks for better hyper-parameters of the fraud model on a history, and writes them down.

In: a history file, the settings. Out: the section ``[fraud_model]`` of ``headrace.toml``, whose other lines stay as
they are. Nothing is written that is not better on days which the search has not seen.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from features.catalogue import build_catalogue
from features.errors import SettingsError, TrainingError
from features.schema import TransactionSchema
from stream.progress import stage_bars
from stream.settings import Settings
from trainer import durable
from trainer.backtest import DAY_MS, Protocol, replayed
from trainer.fraud import FraudSettings
from trainer.history import read_labels, read_transactions
from trainer.tuning import TUNED, Found, search, splits
from trainer.verdicts import counts_told, verdicts_of

SECTION = "fraud_model"
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Options:
    """As on the command line. ``write_to`` is the settings file."""

    transactions: Path
    protocol: Protocol
    minutes: float
    write_to: Path
    trials: int | None = None
    threads: int = 2
    labels: Path | None = None


def fraud_settings(settings: Settings, *, threads: int, seed: int | None = None) -> FraudSettings:
    """How the settings have the fraud model fitted."""
    seed = settings.trainer.seed if seed is None else seed
    return FraudSettings(**asdict(settings.fraud_model), seed=seed, threads=threads,
                         rows_max=settings.trainer.rows_max)  # fmt: skip


def run(settings: Settings, schema: TransactionSchema, options: Options) -> Found:
    """Read, search, write.

    Raises
    ------
    SettingsError
        If a package is missing, or the settings file cannot be written.
    HistoryError, TrainingError
        If a file cannot be used, or the history is too short.
    """
    absent = [name for name in ("optuna", "tomlkit") if find_spec(name) is None]
    if absent:
        raise SettingsError([f"headrace tune needs {' and '.join(absent)}: pip install 'headrace[tune]'"])
    document = _document(options.write_to)
    if not os.access(options.write_to if options.write_to.exists() else options.write_to.absolute().parent, os.W_OK):
        raise SettingsError([f"{options.write_to}: cannot be written; give --config FILE"])
    table = read_transactions(options.transactions, schema, options.protocol.delay_days * DAY_MS)
    verdicts = verdicts_of(table, schema, None if options.labels is None else read_labels(options.labels, schema))
    for sentence in counts_told(verdicts.unknown, verdicts.contradicted):
        print(sentence)
    features, in_force = build_catalogue(schema).features, fraud_settings(settings, threads=options.threads)
    with stage_bars() as progress:
        vectors = replayed(table, schema, progress, verdicts)
        folds = splits(table, schema, vectors, verdicts, options.protocol)
        found = search(
            folds,
            features,
            in_force,
            seconds=options.minutes * 60,
            trials_max=options.trials,
            clock=time.monotonic,
            progress=lambda done, total: progress("tune", int(done), int(total)),
        )
    print(
        f"{found.trials} trials; on the newest {options.protocol.test_days} days, which they did not see: average "
        f"precision {found.before:.4f} with the settings in force, {found.after:.4f} with the best of the search"
    )
    if found.settings == in_force:
        print(f"nothing is written to {options.write_to}: the settings in force are as good")
    else:
        _write(options.write_to, document, found)
    return found


def _document(file: Path) -> dict[str, object]:
    """The settings file as it can be written again with all that stands in it."""
    import tomlkit

    try:
        return tomlkit.parse(file.read_text(encoding="utf-8")) if file.exists() else tomlkit.document()
    except (OSError, ValueError) as error:
        raise SettingsError([f"{file}: cannot be read: {error}"]) from None


def _write(file: Path, document: dict[str, object], found: Found) -> None:
    import tomlkit

    values = {name: getattr(found.settings, name) for name in TUNED}
    values = {name: float(f"{v:.{_DIGITS}g}") if isinstance(v, float) else v for name, v in values.items()}
    section = document.setdefault(SECTION, tomlkit.table())
    if not isinstance(section, dict):
        raise SettingsError([f"{file}: {SECTION} is not a table"])
    section.update(values)
    mode = file.stat().st_mode if file.exists() else None
    try:
        durable.replace(file, tomlkit.dumps(document).encode())
        if mode is not None:
            file.chmod(mode)
    except OSError as error:
        raise TrainingError(f"{file}: cannot be written: {error.strerror or error}") from None
    print(f"written to [{SECTION}] of {file}: " + ", ".join(f"{name} = {value}" for name, value in values.items()))
