"""``headrace train``, once, and ``headrace trainer``, again and again: history in, a published version out.

In: history files, the archive, and for the trainer what the topics have brought since. Out: versions in the artifact
directory, where a running worker finds them. A refit that fails leaves the old version in place, says why, and the next
one is tried when it is due. Killed at any moment, it leaves the old version or the new one whole.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pyarrow as pa

from features.errors import ArtifactError, HeadraceError, SettingsError
from features.schema import Schema
from stream.archive import archive_store
from stream.archived import Archive
from stream.arrivals import Arrivals
from stream.connections import patiently
from stream.progress import stage_bars
from stream.settings import Settings, TrainerSettings
from stream.topics import require_all_topics
from stream.tuning import fraud_settings
from trainer.artifacts import current_version, load
from trainer.fit import FitSettings, Progress, fit
from trainer.growing import GrowingHistory
from trainer.history import read_clicks, read_transactions, reading
from trainer.manifest import Manifest
from trainer.ranker import RankerSettings
from trainer.recommender import RecommenderSettings

log = logging.getLogger("headrace.trainer")
DAY_MS = 86_400_000
NICE = 10  # a refit may take as long as it takes; a decision may not
_BACKOFF_S = (0.5, 1.0, 2.0, 5.0)


def read_history(settings: TrainerSettings, schema: Schema) -> tuple[pa.Table | None, pa.Table | None]:
    """The transactions and clicks of the files that the settings name; None where they name none.

    Raises
    ------
    HistoryError
        If a file cannot be used.
    """
    transactions = clicks = None
    if settings.transactions is not None:
        delay_ms = int(settings.label_delay_days * DAY_MS)
        transactions = read_transactions(settings.transactions, schema.transactions, delay_ms)
        log.info("%s: %s", settings.transactions, reading(transactions))
    if settings.clicks is not None:
        clicks = read_clicks(settings.clicks, schema.clicks)
        log.info("%s: %s", settings.clicks, reading(clicks))
    return transactions, clicks


def begin_history(settings: Settings, schema: Schema, arrivals: Arrivals) -> GrowingHistory:
    """What the history files and the archive know; ``arrivals`` then goes on in the topics where the archive ends.

    Raises
    ------
    HistoryError
        If a file cannot be used.
    ServiceUnavailable
        If the archive cannot be read.
    """
    transactions, clicks = read_history(settings.trainer, schema)
    history = GrowingHistory(schema.transactions, settings.trainer.rows_max, transactions, clicks)
    if settings.archive.url is not None:
        count = arrivals.read_archive(Archive(archive_store(settings)), history, settings.trainer.rows_max)
        log.info("%s: %d records of the archive", settings.archive.url, count)
    return history


def fit_history(
    settings: Settings, schema: Schema, history: GrowingHistory, *, threads: int, progress: Progress | None = None
) -> str:
    """Fit all models on what ``history`` knows at its newest moment and publish them; returns the version.

    Raises
    ------
    TrainingError
        If there is too little to fit on.
    ArtifactError
        If the version cannot be written.
    """
    trainer = settings.trainer
    return fit(
        history.transactions,
        history.clicks,
        schema,
        settings.artifacts,
        as_of_ms=history.as_of_ms,
        clicks_as_of_ms=history.clicks_as_of_ms,
        created_ms=int(time.time() * 1000),
        settings=FitSettings(
            seed=trainer.seed,
            threads=threads,
            rows_max=min(FitSettings().rows_max, trainer.rows_max),
            train_days=trainer.train_days,
            pinned=() if settings.ab.model is None else (settings.ab.model,),
            fraud=fraud_settings(settings, threads=threads),
            blocked=history.blocked,
            recommender=RecommenderSettings(ranker=RankerSettings(queries_max=trainer.ranker_queries)),
        ),
        progress=progress,
    )


def run_once(settings: Settings, schema: Schema) -> None:
    """``headrace train``: fit on the history files, publish, and print how good the models are.

    Raises
    ------
    HeadraceError
        If no file is named, or one cannot be used, or holds too little.
    """
    if settings.trainer.transactions is None and settings.trainer.clicks is None and settings.archive.url is None:
        raise SettingsError(
            ["trainer.transactions: expected history; give --transactions FILE, --clicks FILE, or --archive URL"]
        )
    history = begin_history(settings, schema, Arrivals(settings, schema))
    with stage_bars() as progress:
        # One core is left to others: LightGBM's threads wait for each other, ten times as long where one has no core.
        threads = max(1, (os.cpu_count() or 1) - 1)
        version = fit_history(settings, schema, history, threads=threads, progress=progress)
    for line in manifest_lines(load(settings.artifacts, version, schema.hash).manifest):
        print(line)
    print(f"version {version} is published: {settings.artifacts / version}")


def manifest_lines(manifest: Manifest) -> list[str]:
    """What a version was fitted on and how well, one line for each kind."""
    groups: dict[str, Mapping[str, float | None]] = {"training": manifest.training, **manifest.metrics}
    return [
        f"{name:16} " + ", ".join(f"{what} {_figure(value)}" for what, value in figures.items())
        for name, figures in groups.items()
    ]


def _figure(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4f}"


class PeriodicTrainer:
    """Refits again and again; all state is in memory and is read again after a restart."""

    def __init__(self, settings: Settings, schema: Schema) -> None:
        self._settings = settings
        self._schema = schema
        self._arrivals = Arrivals(settings, schema)
        self._history: GrowingHistory | None = None
        self._fitted = False

    async def run(self) -> NoReturn:
        """Wait until a refit is due, refit, and so on for ever. Without any version the first is due at once."""
        every_s = self._settings.trainer.every_s
        due_s = time.monotonic() + self._first_wait_s()
        while True:
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            due_s = time.monotonic() + every_s
            await self.refit()

    def _first_wait_s(self) -> float:
        version = self._version()
        if version is None:
            return 0.0
        try:
            made_ms = load(self._settings.artifacts, version, self._schema.hash).manifest.created_ms
        except ArtifactError as error:
            log.warning("%s; a new version is fitted now", error)
            return 0.0
        return max(0.0, made_ms / 1000 + self._settings.trainer.every_s - time.time())

    def _version(self) -> str | None:
        try:
            return current_version(self._settings.artifacts)
        except ArtifactError as error:
            log.warning("%s", error)
            return None

    async def refit(self) -> str | None:
        """One refit; returns the new version, None if there is none. Never raises what a later refit could mend."""
        try:
            return await self._refit()
        except HeadraceError as error:
            log.error("refit failed: %s; version %s stays in place", error, self._version() or "(none)")
        except Exception:  # the boundary of a refit: whatever is wrong with this one, the next may go well
            log.exception("refit failed; version %s stays in place", self._version() or "(none)")
        return None

    async def _refit(self) -> str | None:
        settings, schema = self._settings, self._schema
        if self._history is None:
            self._history = await asyncio.to_thread(begin_history, settings, schema, self._arrivals)
        arrived = await self._arrivals.catch_up(self._history)
        if self._fitted and not arrived:
            log.info("nothing arrived since the last refit; version %s stays in place", self._version())
            return None
        start = time.monotonic()
        version = await asyncio.to_thread(fit_history, settings, schema, self._history, threads=1)
        self._fitted = True
        log.info(
            "version %s is published: %d records since the last refit, %d transactions and %d clicks in all, %.1f s",
            version, arrived, self._history.transactions.num_rows, self._history.clicks.num_rows,
            time.monotonic() - start,
        )  # fmt: skip
        return version


def run_forever(settings: Settings, schema: Schema) -> None:
    """``headrace trainer``: refit every ``trainer.every_s`` until SIGTERM or Ctrl-C, which end it at once.

    Raises
    ------
    TopicError
        If a topic is missing or of the wrong shape.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    log.setLevel(logging.INFO)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    _step_back()

    async def main() -> None:
        await patiently(lambda: require_all_topics(settings), log, backoff_s=_BACKOFF_S)
        await PeriodicTrainer(settings, schema).run()

    asyncio.run(main())


def _step_back() -> None:
    """Let decisions go first. Linux weighs sessions before it weighs the processes in them, so both are told."""
    os.nice(NICE)
    with suppress(OSError):  # no Linux, or no grouping by session: then the line above is enough
        Path("/proc/self/autogroup").write_text(f"{NICE}\n", encoding="ascii")


def _end(number: int, _: object) -> None:
    """Nothing needs to be tidied: a version is published by one rename, and a refit in C code would not be woken."""
    log.info("stopped")
    logging.shutdown()
    os._exit(0)
