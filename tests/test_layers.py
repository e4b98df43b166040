"""The shape of the code, read from its imports: packages in one direction, and each way out in few modules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("features", "trainer", "stream")
_LINES_MAX = 400
_TEXT_SUFFIXES = {".py", ".toml", ".md", ".yml", ".yaml", ".json", ".lock", ".lua", ".html", ".css", ".js", ".sh"}

# Who may import what of ours besides its own package. A reason stands beside each exception.
_MAY_IMPORT = {"features": set[str](), "trainer": {"features"}, "stream": {"features", "trainer.artifacts"}}
_MORE_OF_TRAINER = {
    "stream/backtest_fraud.py": "walks history through the trainer",
    "stream/backtest_recommend.py": "trains, and measures what a worker would have answered",
    "stream/cli.py": "its commands run the trainer",
    "stream/archive_store.py": "replaces files in the same way as those of the artifacts",
    "stream/arrivals.py": "brings what arrives into the tables that the trainer fits on",
    "stream/past.py": "simulates, reads and splits history for a demonstration",
    "stream/training.py": "runs refits",
    "stream/tuning.py": "searches hyper-parameters with the trainer",
    "stream/rule_report.py": "runs rules over a history",
    "stream/whatif.py": "reads history files and the scores of a backtest",
    "stream/up.py": "begins the worker's state with the history that trained",
    "stream/replay.py": "reads history files to send them",
}

# The ways out of pure code, and the modules that may use them.
_ENTRIES = {
    "faust": {"stream/consumer.py", "stream/fetching.py", "stream/worker.py"},
    "mode": {"stream/consumer.py", "stream/fetching.py", "stream/worker.py"},
    "fsspec": {"stream/archive_store.py"},
    "redis": {"stream/roundtrip.py", "stream/connections.py", "stream/resp.py"},
    "prometheus_client": {"stream/metrics.py"},
}
# trainer/artifacts.py hands its own environment on to the child that verifies a version.
_ENVIRONMENT = {
    "stream/settings.py",
    "stream/cli.py",
    "stream/options.py",
    "stream/embedded.py",
    "trainer/artifacts.py",
}
_PICKLES = {"pickle", "joblib", "cloudpickle", "dill", "shelve", "marshal"}
_IMPURE = {"asyncio", "aiokafka", "random", "socket", "subprocess", "time"}


def _files(*packages: str) -> list[str]:
    return sorted(
        path.relative_to(_ROOT).as_posix() for package in packages for path in (_ROOT / package).rglob("*.py")
    )


_SOURCES = _files(*_PACKAGES)


@cache
def _tree(name: str) -> ast.Module:
    return ast.parse((_ROOT / name).read_text(encoding="utf-8"), name)


def _imports(name: str) -> Iterator[str]:
    """Every module that a file imports, as a dotted name; of ``from a import b`` both ``a`` and ``a.b``."""
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name}: relative import in line {node.lineno}"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _ours(name: str) -> set[str]:
    """The modules of our packages that a file imports, two names deep."""
    found = {".".join(module.split(".")[:2]) for module in _imports(name) if module.split(".")[0] in _PACKAGES}
    return {module for module in found if _is_module(module)}


def _is_module(dotted: str) -> bool:
    path = _ROOT.joinpath(*dotted.split("."))
    return path.with_suffix(".py").exists() or (path.is_dir() and "." not in dotted)


@pytest.mark.parametrize("name", _SOURCES)
def test_packages_import_in_one_direction_only(name: str) -> None:
    package = name.split("/")[0]
    allowed = {"features", "trainer"} if name in _MORE_OF_TRAINER else _MAY_IMPORT[package]
    for module in _ours(name):
        if module.split(".")[0] == package:
            continue
        if module == "trainer" and package == "stream":
            continue  # the package's name in `from trainer import artifacts`; the module beside it is judged
        assert module in allowed or module.split(".")[0] in allowed, f"{name} imports {module}"


@pytest.mark.parametrize("way", sorted(_ENTRIES))
def test_each_way_out_is_used_in_the_named_modules_only(way: str) -> None:
    users = {name for name in _SOURCES if any(module.split(".")[0] == way for module in _imports(name))}
    assert users <= _ENTRIES[way]


def test_the_environment_is_read_at_the_entry_points_only() -> None:
    users = {
        name
        for name in _SOURCES
        for node in ast.walk(_tree(name))
        if isinstance(node, ast.Attribute | ast.Name | ast.alias)
        and (getattr(node, "attr", None) or getattr(node, "id", None) or getattr(node, "name", None))
        in {"environ", "getenv", "os.environ"}
    }
    assert users <= _ENVIRONMENT


def test_nothing_is_ever_pickled() -> None:
    for name in _SOURCES:
        assert not {module.split(".")[0] for module in _imports(name)} & _PICKLES, name
        for node in ast.walk(_tree(name)):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, f"{name}:{node.value.lineno}"


@pytest.mark.parametrize("name", _files("features"))
def test_features_wait_for_nothing_and_ask_no_clock(name: str) -> None:
    assert not {module.split(".")[0] for module in _imports(name)} & _IMPURE


@pytest.mark.parametrize("name", _files("features", "trainer", "stream", "tests", "bench", "chaos", "fuzz"))
def test_files_are_short_and_named_after_a_thing(name: str) -> None:
    lines = (_ROOT / name).read_text(encoding="utf-8").count("\n")
    assert lines <= _LINES_MAX, f"{lines} lines; are there two subjects in it?"
    assert Path(name).stem not in {"utils", "util", "helpers", "common", "misc"}


def test_no_file_names_a_path_of_some_machine() -> None:
    private = re.compile(r"(?<![\w.*])/(?:work|root|home|Users|opt)/\w")
    folders = (*_PACKAGES, "tests", "bench", "chaos", "fuzz", "docs", "deploy", "examples", ".ci")
    paths = [path for folder in folders for path in (_ROOT / folder).rglob("*")]
    paths += [path for path in _ROOT.iterdir() if path.name != ".git"]
    for path in paths:
        if path.is_file() and (path.suffix in _TEXT_SUFFIXES or path.name in {"Makefile", "Dockerfile", "run"}):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                assert not private.search(line), f"{path.relative_to(_ROOT)}:{number}: {line.strip()[:120]}"
