"""What the project's own files promise to users: the locks, the commands, the licence."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from stream import cli

_ROOT = Path(__file__).parents[1]
_LOCKS = ("requirements.lock", "requirements-dev.lock")


def _text(name: str) -> str:
    return (_ROOT / name).read_text(encoding="utf-8")


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads(_text("pyproject.toml"))["project"]
    return project


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pins(lock: str) -> dict[str, str]:
    """Package to version; each with the text of its hashes checked."""
    pins = {}
    for entry in re.split(r"\n(?=[\w.-]+==)", "\n" + _text(lock))[1:]:
        head = re.match(r"([\w.-]+)==([\w.!+]+)", entry)
        assert head is not None and re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry[:60]
        pins[_canonical(head[1])] = head[2]
    return pins


def _required(requirements: list[str]) -> set[str]:
    return {_canonical(found[0]) for line in requirements if (found := re.match(r"[\w.-]+", line))}


@pytest.mark.parametrize("lock", _LOCKS)
def test_locks_hold_hashes_and_no_address(lock: str) -> None:
    assert len(_pins(lock)) > 30
    text = _text(lock)
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host| @ |^-e ", text, re.MULTILINE)
    assert not re.search(r"(^|\s)/\w", text), "a path of some machine"


def test_locks_pin_every_declared_dependency_and_agree() -> None:
    project, runtime, development = _project(), *map(_pins, _LOCKS)
    assert _required(project["dependencies"]) <= runtime.keys()
    assert _required(project["optional-dependencies"]["dev"]) <= development.keys()
    assert runtime.items() <= development.items()


def test_make_accepts_the_pythons_that_the_project_declares() -> None:
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", _project()["requires-python"]).groups()  # type: ignore[union-attr]
    assert f"(3, {low}) <= sys.version_info[:2] <= (3, {int(high) - 1})" in _text("Makefile")


def test_every_make_command_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", _text("Makefile"), re.MULTILINE))
    assert {"setup", "up", "test"} <= targets
    assert set(re.findall(r"\bmake ([a-z]+)\b", _code(_text("README.md")))) <= targets


def test_every_headrace_command_in_the_readme_exists() -> None:
    known = set(get_command(cli.app).commands)  # type: ignore[attr-defined]
    assert set(re.findall(r"^(?:\$ )?(?:\S*/)?headrace ([a-z-]+)", _code(_text("README.md")), re.MULTILINE)) <= known


def _code(markdown: str) -> str:
    """Code blocks and code spans, one below the other."""
    blocks = re.findall(r"^```.*?\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", markdown)
    return "\n".join([*blocks, *spans])


def test_the_licence_is_the_declared_one() -> None:
    assert _project()["license"] == "Apache-2.0"
    assert "Apache License" in _text("LICENSE") and "Version 2.0" in _text("LICENSE")


def test_ci_runs_the_tests_and_refuses_to_skip_kafka() -> None:
    script = _text(".ci/run")
    assert "HEADRACE_REQUIRE_KAFKA=1" in script and "make test" in script
    assert os.access(_ROOT / ".ci" / "run", os.X_OK)
