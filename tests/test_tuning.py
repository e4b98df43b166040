"""``headrace tune`` finds better settings, proves them on other days, and writes them where training reads them."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from features.catalogue import build_catalogue
from features.errors import SettingsError, TrainingError
from features.schema import load_schema
from stream import tuning
from stream.cli import app
from stream.settings import FraudModelSettings, Settings, load_settings
from trainer.backtest import DAY_MS, Protocol, replayed
from trainer.fraud import FraudSettings, Judged
from trainer.history import read_transactions
from trainer.simulator import simulate
from trainer.tuning import Split, search, splits
from trainer.verdicts import verdicts_of

SCHEMA = load_schema().transactions
FEATURES = build_catalogue(SCHEMA).features[:4]

for _package in ("optuna", "tomlkit"):
    pytest.importorskip(_package, reason="headrace tune needs the packages of the extra `tune`")


def silent(*_: Any) -> None:
    """Nobody watches."""


def world(seed: int, rows: int = 1500) -> Judged:
    """Transactions of whose features two tell fraud together and neither tells it alone."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, len(FEATURES)))
    fraud = x[:, 0] * x[:, 1] > 0.5
    time = np.arange(rows, dtype=np.int64)
    return Judged(x, fraud, time, time)


FOLDS = [Split(world(seed), world(seed + 10)) for seed in range(3)]
POOR = FraudSettings(trees=25, leaves=2, learning_rate=0.01, bins=63, threads=1)


def found(settings: FraudSettings, **more: Any) -> Any:
    how: dict[str, Any] = {"seconds": 60.0, "trials_max": 4, "clock": lambda: 0.0, "progress": silent} | more
    return search(FOLDS, FEATURES, settings, **how)


def test_the_search_leaves_poor_settings_and_the_same_seed_finds_the_same() -> None:
    first = found(POOR)
    assert first.after > first.before and first.settings != POOR and first.trials == 4
    assert replace(first.settings, **{name: getattr(POOR, name) for name in ("trees", "leaves", "learning_rate",
                   "leaf_rows", "l2", "feature_share", "row_share")}) == POOR, "nothing else is changed"  # fmt: skip
    assert found(POOR) == first


def test_without_a_better_trial_the_settings_in_force_stay() -> None:
    alone = found(POOR, trials_max=1)
    assert alone.settings == POOR and alone.trials == 1


def test_the_newest_days_have_no_part_in_the_search() -> None:
    other = [*FOLDS[:-1], Split(world(7), world(8))]
    kept = [search(folds, FEATURES, POOR, seconds=60.0, trials_max=3, clock=lambda: 0.0, progress=silent)
            for folds in (FOLDS, other)]  # fmt: skip
    assert kept[0].searched == kept[1].searched and kept[0].before != kept[1].before


def test_a_budget_that_ends_gives_up_the_trial_that_runs() -> None:
    ticks = iter(range(1_000_000))
    told: list[tuple[float, float]] = []
    short = found(POOR, seconds=120.0, trials_max=None, clock=lambda: float(next(ticks)),
                  progress=lambda done, total: told.append((done, total)))  # fmt: skip
    assert 1 <= short.trials <= 3  # a trial of 2 folds and 25 trees or more reads the clock 50 times
    assert max(told) == (120.0, 120.0)
    with pytest.raises(TrainingError, match=r"budget of 3 s ended within the first trial; give more --minutes"):
        found(POOR, seconds=3.0, trials_max=None, clock=lambda: float(next(ticks)))


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("payments")
    return simulate(directory, days=60, cards=300, merchants=60, sessions_per_day=5.0, items=200).transactions


def test_the_command_writes_what_training_reads_and_keeps_every_other_line(history: Path, tmp_path: Path) -> None:
    config = tmp_path / "headrace.toml"
    before = "# ours\n[trainer]\nevery_s = 60.0  # often\n\n[fraud_model]\ntrees = 25\nleaves = 2\n"
    before += "learning_rate = 0.001\nbins = 31\n"
    config.write_text(before, encoding="utf-8")
    config.chmod(0o600)
    flags = ["tune", "--transactions", str(history), "--config", str(config), "--folds", "2", "--test-days", "8",
             "--delay-days", "2", "--trials", "3", "--minutes", "3", "--threads", "1"]  # fmt: skip
    done = CliRunner().invoke(app, flags)
    assert done.exit_code == 0, done.output
    assert "average precision" in done.output and f"written to [fraud_model] of {config}" in done.output
    text = config.read_text("utf-8")
    assert text.startswith("# ours\n[trainer]\nevery_s = 60.0  # often\n") and config.stat().st_mode & 0o777 == 0o600
    settings = load_settings(config, {})
    assert settings.fraud_model != load_settings(None, {}).fraud_model and settings.trainer.every_s == 60.0
    used = tuning.fraud_settings(settings, threads=1)
    assert {name: getattr(used, name) for name in asdict(settings.fraud_model)} == asdict(settings.fraud_model)


def test_a_history_that_is_too_short_or_has_too_few_frauds_says_what_helps(history: Path) -> None:
    table = read_transactions(history, SCHEMA, 2 * DAY_MS)
    verdicts = verdicts_of(table, SCHEMA)
    vectors = replayed(table, SCHEMA, silent)
    for protocol, words in (
        (Protocol(0, 9, 7, 2, None), "need an earlier begin .* fewer --folds, --test-days or --train-days"),
        (Protocol(0, 3, 1, 2, 10), "at least 20 frauds are needed: give more --test-days"),
    ):
        with pytest.raises(TrainingError, match=words):
            splits(table, SCHEMA, vectors, verdicts, protocol)
    two = splits(table, SCHEMA, vectors, verdicts, Protocol(0, 2, 8, 2, None))
    for split in two:
        assert split.train.time_ms.max() + 2 * DAY_MS <= split.test.time_ms.min()
        assert split.train.known_ms.max() < split.test.time_ms.min() // DAY_MS * DAY_MS
    assert two[0].test.time_ms.max() < two[1].test.time_ms.min()


def test_missing_packages_are_named_with_the_way_to_have_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tuning, "find_spec", lambda name: None if name == "optuna" else object())
    options = tuning.Options(tmp_path / "x", Protocol(0), 1.0, tmp_path / "headrace.toml")
    with pytest.raises(SettingsError, match=r"headrace tune needs optuna: pip install 'headrace\[tune\]'"):
        tuning.run(Settings(), SCHEMA, options)


def test_a_settings_file_that_cannot_be_written_is_said_before_the_search(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("[", encoding="utf-8")
    for file, words in ((tmp_path / "none" / "h.toml", "cannot be written"), (tmp_path / "broken.toml", "be read")):
        with pytest.raises(SettingsError, match=words):
            tuning.run(Settings(), SCHEMA, tuning.Options(tmp_path / "x", Protocol(0), 1.0, file))


def test_the_settings_defaults_are_those_of_the_trainer() -> None:
    defaults = FraudSettings()
    assert {name: getattr(defaults, name) for name in asdict(FraudModelSettings())} == asdict(FraudModelSettings())
