"""Fills a tree of settings dataclasses from a TOML file, the environment and flags, by the types of its fields.

In: the dataclass and the three sources. Out: the values by dotted name, and every problem. Knows no single setting:
the types of the fields (msgspec constraints, :class:`Check`, :class:`Secret`) say what is allowed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from features.toml_text import read_toml

_WORDS = {"`int`": "a whole number", "`float`": "a number", "`str`": "text", "`bool`": "true or false",
          "`array`": "a list", "`object`": "a table", "`null`": "nothing", " | ": " or "}  # fmt: skip


@dataclass(frozen=True)
class Check:
    """Marks a text that its type alone cannot check: ``accepts`` decides, ``expected`` says what it wants."""

    accepts: Callable[[str], bool]
    expected: str


@dataclass(frozen=True)
class Secret:
    """Marks a setting whose value is never shown."""


@dataclass(frozen=True, slots=True)
class Given:
    """A value as found: where it came from, and whether it is text that still has to be parsed."""

    value: object
    origin: str
    is_text: bool = False
    base: Path | None = None


def setting_types(root: type) -> dict[str, Any]:
    """The annotation of every setting below ``root``, by dotted name, in order of declaration."""
    found: dict[str, Any] = {}
    for name, annotation in get_type_hints(root, include_extras=True).items():
        if is_dataclass(annotation) and isinstance(annotation, type):
            found |= {f"{name}.{inner}": kind for inner, kind in setting_types(annotation).items()}
        else:
            found[name] = annotation
    return found


def environment_name(name: str) -> str:
    """The environment variable of a setting.

    >>> environment_name("kafka.bootstrap")
    'HEADRACE_KAFKA_BOOTSTRAP'
    """
    return "HEADRACE_" + name.replace(".", "_").upper()


def marks(annotation: Any) -> Iterator[object]:
    """Everything that ``Annotated`` hangs on a type or on a member of a union."""
    yield from getattr(annotation, "__metadata__", ())
    if hasattr(annotation, "__metadata__"):
        yield from marks(annotation.__origin__)
    elif get_origin(annotation) is not Literal:
        for member in get_args(annotation):
            yield from marks(member)


class Reader:
    """Collects the given values and every problem on the way."""

    def __init__(self, root: type, flags: Mapping[str, str]) -> None:
        self.types = setting_types(root)
        self.sections = {f.name for f in fields(root)} - set(self.types)
        self.flags = flags
        self.given: dict[str, Given] = {}
        self.problems: list[str] = []

    def read_file(self, path: Path) -> None:
        """Lays the TOML file over what was given before."""
        try:
            tables = read_toml(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}")
            return
        except ValueError as error:
            self.problems.append(f"{path}: not valid TOML: {error}")
            return
        for name, value in tables.items():
            if name not in self.sections:
                self._give(name, Given(value, str(path), base=path.parent))
            elif isinstance(value, dict):
                for inner, item in value.items():
                    self._give(f"{name}.{inner}", Given(item, str(path), base=path.parent))
            else:
                self.problems.append(f"{name} ({path}): expected a table, written as [{name}]")

    def read_environment(self, environment: Mapping[str, str]) -> None:
        """Lays ``HEADRACE_*`` over what was given before; other prefixes are none of ours."""
        names = {environment_name(name): name for name in self.types}
        prefixes = tuple(f"{environment_name(section)}_" for section in self.sections)
        for variable, value in environment.items():
            if variable in names:
                name = names[variable]
                is_list = get_origin(self.types[name]) is tuple
                parts = [part for part in value.split(os.pathsep) if part]
                self._give(name, Given(parts if is_list else value, f"environment variable {variable}", is_text=True))
            elif variable.startswith(prefixes):
                self.problems.append(f"environment variable {variable}: no such setting{self._nearest(variable)}")

    def read_flags(self, overrides: Mapping[str, object]) -> None:
        """Lays flags over what was given before; None means not given."""
        for name, value in overrides.items():
            if value is not None:
                plain = [os.fspath(item) for item in value] if isinstance(value, list | tuple) else value
                plain = os.fspath(plain) if isinstance(plain, Path) else plain
                self._give(name, Given(plain, f"flag {self.flags.get(name, name)}"))

    def values(self) -> dict[str, Any]:
        """The given values, checked and converted, by dotted name."""
        found: dict[str, Any] = {}
        for name, given in self.given.items():
            annotation = self.types[name]
            try:
                found[name] = self._convert(annotation, given)
            except msgspec.ValidationError as error:
                self._refuse(name, given, _expected(annotation, error))
        return found

    def _convert(self, annotation: Any, given: Given) -> Any:
        def path_hook(kind: type, value: Any) -> Any:
            if kind is Path and isinstance(value, str) and value:
                return (given.base or Path()) / Path(value).expanduser()
            raise ValueError("Expected a path")

        value = msgspec.convert(given.value, annotation, strict=not given.is_text, dec_hook=path_hook)
        for check in marks(annotation):
            if isinstance(check, Check) and value is not None and not check.accepts(value):
                raise msgspec.ValidationError(f"Expected {check.expected}")
        return value

    def _give(self, name: str, given: Given) -> None:
        if name in self.types:
            self.given[name] = given
        else:
            self.problems.append(f"{name} ({given.origin}): no such setting{self._nearest(name)}")

    def _refuse(self, name: str, given: Given, expected: str) -> None:
        if any(isinstance(mark, Secret) for mark in marks(self.types[name])):
            self.problems.append(f"{name} ({given.origin}): expected {expected}; its value is not shown")
        else:
            shown = repr(given.value)
            shown = shown if len(shown) <= 80 else shown[:77] + "..."
            self.problems.append(f"{name} = {shown} ({given.origin}): expected {expected}")

    def _nearest(self, name: str) -> str:
        import difflib  # only for the sentence of a mistake

        choices = {known if "." in name or "_" not in name else environment_name(known): 0 for known in self.types}
        close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
        return f"; did you mean {close[0]}?" if close else ""


def _expected(annotation: Any, error: msgspec.ValidationError) -> str:
    for member in (annotation, *get_args(annotation)):
        if get_origin(member) is Literal:
            return "one of " + ", ".join(map(str, get_args(member)))
    text = str(error).removeprefix("Expected ")
    for word, plain in _WORDS.items():
        text = text.replace(word, plain)
    return text
