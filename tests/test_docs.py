"""The documentation's own promises: its tables are those of the code, its links lead somewhere, its walk is short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase
from typer.main import get_command

from features.catalogue import RING, TILES, build_catalogue
from features.errors import SettingsError
from features.schema import load_schema, parse_schema
from stream.cli import app
from stream.consumer import overridden
from stream.metrics import STAGES, ArchiveMetrics, Latencies, Metrics, RuleTotals
from stream.settings import Settings
from stream.settings_reader import setting_types

_ROOT = Path(__file__).parents[1]
_PAGES = sorted(page.relative_to(_ROOT).as_posix() for page in [*_ROOT.glob("*.md"), *(_ROOT / "docs").glob("*.md")])
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
_KEY_TABLES = {
    "[transactions]": "nonsense = 1",
    "[[transactions.entities]]": "nonsense = 1",
    "numeric = [{ ... }]": "",
    "[clicks]": "nonsense = 1",
}


def _text(name: str) -> str:
    return (_ROOT / name).read_text(encoding="utf-8")


def _section(name: str, heading: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    level, text = len(heading) - len(heading.lstrip("#")), _text(name)
    start = text.index(f"\n{heading}\n") + len(heading) + 2
    end = re.search(rf"^#{{1,{level}}} ", text[start:], re.MULTILINE)
    return text[start : start + end.start()] if end else text[start:]


def _rows(text: str) -> list[list[str]]:
    """The cells of every table row whose first cell is code."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]


def _anchors(name: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _text(name), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", _PAGES)
def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading(name: str) -> None:
    for target in _LINK.findall(_text(name)):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        found = (_ROOT / name).parent / path if path else _ROOT / name
        assert found.exists(), f"{name} links to {target}"
        if anchor:
            assert anchor in _anchors(found.resolve().relative_to(_ROOT).as_posix()), f"{name} links to {target}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set[Path](), [_ROOT / "README.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        targets = (target.partition("#")[0] for target in _LINK.findall(page.read_text(encoding="utf-8")))
        waiting += [page.parent / target for target in targets if target and "://" not in target]
    assert {(_ROOT / page).resolve() for page in _PAGES} <= reached


def test_the_features_table_is_the_catalogue_of_the_shipped_schema() -> None:
    features = build_catalogue(load_schema().transactions).features
    documented = [
        f"| {' | '.join(row)} |" for row in _rows(_section("docs/features.md", "## The shipped schema's features"))
    ]
    expected = [f"| `{feature.name}` | {feature.definition} |" for feature in features]
    assert documented == expected, "the table should be:\n" + "\n".join(expected)
    assert f"the {len(features)}\nfeatures of the shipped schema" in _text("docs/features.md")


def test_the_windows_on_the_page_are_cut_as_the_kernel_cuts_them() -> None:
    section = _section("docs/features.md", "## Windows")
    assert f"A window has {TILES} hops of w / {TILES}" in section
    assert f"A row keeps {RING} tiles" in section and f"at most {RING - TILES - 1} hops late" in section


@pytest.mark.parametrize("heading", _KEY_TABLES)
def test_the_schema_reference_names_every_key_and_no_other(heading: str) -> None:
    """A refused key is told with those that are known."""
    text = f"{heading}\n{_KEY_TABLES[heading]}\n"
    if heading.startswith("numeric"):
        text = "[transactions]\nnumeric = [{ name = 'amount', nonsense = 1 }]\n"
    with pytest.raises(SettingsError) as refused:
        parse_schema(text)
    (line,) = [problem for problem in refused.value.problems if ".nonsense: " in problem]
    known = line.partition("known are ")[2].split(", ")
    rows = _rows(_section("docs/features.md", f"### `{heading}`"))
    assert sorted(row[0].strip("`") for row in rows) == sorted(known)


def test_the_metrics_table_of_the_archive_is_what_it_serves() -> None:
    assert {row[0]: row[1] for row in _rows(_section("docs/archive.md", "## Metrics"))} == {
        name: ", ".join(labels) for name, labels in _served(ArchiveMetrics()).items()
    }


def _served(metrics: Metrics | ArchiveMetrics) -> dict[str, list[str]]:
    served = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            total = "_total" if family.type == "counter" else ""
            served[f"`{family.name}{total}`"] = [f"`{label}`" for label in metric._labelnames]
        elif isinstance(metric, Latencies):
            served["`headrace_end_to_end_seconds`"] = ["`kind`"]
        elif isinstance(metric, RuleTotals):
            metric.partitions = {0: {("a", False): (1, 1, 0)}}
            for family in metric.collect():
                served[f"`{family.name}_total`"] = [f"`{label}`" for label in family.samples[0].labels]
    return served


def test_the_metrics_table_is_what_a_worker_serves() -> None:
    served = _served(Metrics())
    rows = _rows(_section("docs/operations.md", "## Metrics"))
    assert {row[0]: [label for label in row[1].split(", ") if label] for row in rows} == served
    (stages,) = [row[2] for row in rows if row[0] == "`headrace_stage_seconds`"]
    assert re.findall(r"`(\w+)`", stages) == list(STAGES)


def test_the_errors_that_the_page_explains_are_texts_of_the_program() -> None:
    sources = "".join(_text(path.relative_to(_ROOT).as_posix()) for path in (_ROOT / "stream").glob("*.py"))
    sources += "".join(_text(path.relative_to(_ROOT).as_posix()) for path in (_ROOT / "trainer").glob("*.py"))
    sources += _text("features/budget.py")
    for row in _rows(_section("docs/operations.md", "## Errors, and what to do")):
        for words in re.findall(r"`([^`]+)`", row[0]):
            assert words in sources, f"nothing says {words!r}"


def test_settings_and_commands_on_the_pages_exist() -> None:
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    known, sections = set(setting_types(Settings)), {"kafka", "redis", "topics", "worker", "trainer", "archive"}
    for name in _PAGES:
        spans = re.findall(r"`([^`\n]+)`", _text(name))
        for span in spans:
            if match := re.fullmatch(r"(\w+)\.(\w+)", span):
                assert match[1] not in sections or span in known or match[2] == "toml", f"{name}: {span}"
            if match := re.match(r"headrace ([a-z]+)\b", span):
                assert match[1] in commands, f"{name}: {span}"


def test_the_memory_that_the_page_gives_is_that_of_the_rows() -> None:
    card, merchant = build_catalogue(load_schema().transactions).layouts
    sizes = [f"{(layout.ints + layout.floats) * 8:,}" for layout in (card, merchant)]
    assert f"a card's row has {sizes[0]} bytes and a merchant's {sizes[1]}" in _text("docs/operations.md")


def test_the_walk_from_bytes_to_alert_takes_at_most_five_files_and_names_what_is_there() -> None:
    steps = re.findall(
        r"^\d\. \[([\w/.]+)\]\(\.\./\1\): (.*?)(?=^\d\. |\Z)",
        _section("docs/architecture.md", "## One transaction from bytes to alert"),
        re.MULTILINE | re.DOTALL,
    )
    assert 1 < len(steps) <= 5
    for path, told in steps:
        source = _text(path)
        for name in re.findall(r"`([\w.]+)`", told.split("\n\n")[0]):
            assert re.search(rf"^\s*(?:async )?(?:def|class) {name.split('.')[-1]}\b", source, re.MULTILINE) or (
                f"{name}(" in source
            ), f"{path} has no {name}"


def test_the_private_names_of_faust_that_the_page_lists_are_those_in_use() -> None:
    section = _section("docs/architecture.md", "## Faust, and why its agents are bypassed")
    listed = section[section.index("private to Faust:") : section.index("and of aiokafka")]
    assert set(re.findall(r"`(\w+)`", listed)) == {name for _, name in overridden()}


def test_the_schema_in_the_readme_is_the_example_file() -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```", _text("README.md"), re.MULTILINE | re.DOTALL)
    assert _text("examples/logins.toml").endswith(block)


def test_the_readme_maps_every_folder_and_names_every_command() -> None:
    folders = " ".join(row[0] for row in _rows(_section("README.md", "## Folders")))
    assert set(re.findall(r"`(\w+)/`", folders)) == {
        "features", "trainer", "stream", "tests", "chaos", "fuzz", "bench", "deploy", "examples", "docs",
    }  # fmt: skip
    assert all((_ROOT / folder).is_dir() for folder in re.findall(r"`(\w+)/`", folders))
    named = {row[0].strip("`").split()[0] for row in _rows(_section("README.md", "## Your own servers"))}
    assert named == set(get_command(app).commands)  # type: ignore[attr-defined]
