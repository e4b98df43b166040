"""The live view of ``headrace up``: what comes in, what goes out, how fast, and why.

In: counts, the newest answers, and the worker's metrics. Out: a screen on a terminal, a line every few seconds where
standard output is none, nothing beside ``--json``. State owned: the last ten seconds of metrics. Ids and titles come
from outside, so what cannot be printed is escaped.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from features.messages import Alert
from stream.answers import AnswerCounter
from stream.render import ACTION_STYLES, printable
from stream.replay import Sent
from stream.scrape import Page
from stream.settings import Settings
from stream.watch import read_titles

Show = Callable[[Page | None], None]
_T = TypeVar("_T")
_WINDOW_S = 10.0
_PLAIN_EVERY_S = 5.0
_SIZE_MIN = (60, 24)
_STAGES = ("decode", "read", "features", "model", "encode", "produce", "apply")
_COLUMN = 38


@dataclass(frozen=True, slots=True)
class Glance:
    """What the view looks at; ``total`` messages are to be sent, ``rate`` a second."""

    settings: Settings
    directory: Path
    rate: float
    total: int
    sent: Sent
    counter: AnswerCounter


class View:
    """Turns what :class:`Glance` holds into lines."""

    def __init__(self, glance: Glance, titles: dict[str, str], now_s: float) -> None:
        self._glance = glance
        self._titles = titles
        self._began_s = now_s
        self._seen: deque[tuple[float, Page, int]] = deque()
        self._versions: list[tuple[str, float]] = []
        self._now_s = now_s
        self.notes: deque[str] = deque(maxlen=1)

    def update(self, page: Page | None, now_s: float) -> None:
        """Take note of the worker's metrics at ``now_s``."""
        self._now_s = now_s
        if page is None:
            return
        self._seen.append((now_s, page, self._glance.sent.messages))
        while len(self._seen) > 2 and now_s - self._seen[0][0] > _WINDOW_S:
            self._seen.popleft()
        for version in page.by("headrace_model_info", "version"):
            if not self._versions or self._versions[-1][0] != version:
                self._versions.append((version, now_s))

    # -- figures ------------------------------------------------------------------------------------------------

    def _rate(self) -> float:
        if len(self._seen) < 2:
            return 0.0
        (first_s, _, before), (last_s, _, after) = self._seen[0], self._seen[-1]
        return (after - before) / max(last_s - first_s, 1e-9)

    def _recent(self) -> Page:
        """What the worker observed in the last seconds; since its start in the first ones."""
        if not self._seen:
            return Page()
        return self._seen[-1][1].since(self._seen[0][1]) if len(self._seen) > 1 else self._seen[-1][1]

    def _lag(self) -> int:
        return int(self._seen[-1][1].value("headrace_consumer_lag_records")) if self._seen else 0

    @staticmethod
    def _ms(page: Page, histogram: str, **labels: str) -> list[str]:
        found = [page.quantile(histogram, q, **labels) for q in (0.5, 0.99)]
        return ["-" if seconds is None else f"{seconds * 1000:.1f} ms" for seconds in found]

    # -- one line -----------------------------------------------------------------------------------------------

    def line(self) -> str:
        """Everything that matters in one line."""
        counts = self._glance.counter.counts
        p50, p99 = self._ms(self._recent(), "headrace_end_to_end_seconds", kind="decision")
        version = self._versions[-1][0] if self._versions else "none"
        return (
            f"{self._now_s - self._began_s:5.0f} s  {self._rate():.0f} events/s  {counts['decisions']:,} decisions "
            f"(p50 {p50}, p99 {p99})  {counts['alerts']:,} alerts  {counts['recommendations']:,} recommendations  "
            f"{counts['dead_letters']:,} dead letters  lag {self._lag()}  model {version}"
        )

    def latest(self) -> str:
        """The newest alert with its reasons, in words; nothing before the first."""
        return "\n".join(line.plain for line in self._alerts(1))

    # -- the screen ---------------------------------------------------------------------------------------------

    def screen(self, width: int, height: int) -> list[Text]:
        """At most ``height`` lines of at most ``width`` characters; some 80 by 24 show everything."""
        left, right = self._events(), self._latencies()
        middle = [self._beside(*both) for both in zip(left, right, strict=True)]
        foot = [self._dead_letters(), self._models(), self._where(), self._note()]
        free = max(0, height - len(middle) - len(foot) - 3)
        alerts = max(free * 2 // 3 // 2 * 2, 2)
        lines = [self._head(), *middle, _rule("latest alerts", width), *_filled(self._alerts(alerts // 2), alerts)]
        recommended = self._recommendations(max(free - alerts, 1))
        lines += [_rule("latest recommendations", width), *_filled(recommended, free - alerts), *foot]
        for line in lines:
            line.truncate(width, overflow="ellipsis")
            line.no_wrap = True
        return lines[:height]

    def _head(self) -> Text:
        minutes, seconds = divmod(int(self._now_s - self._began_s), 60)
        text = Text("headrace ", style="bold cyan")
        done = self._glance.sent.messages
        text.append(
            f"  {minutes}:{seconds:02}   {self._rate():,.0f} events/s   lag {self._lag():,}   ", style="default"
        )
        state = "all of history is replayed" if done >= self._glance.total else f"{done:,} of {self._glance.total:,}"
        return text.append(state, style="dim")

    @staticmethod
    def _beside(left: Text, right: Text) -> Text:
        left = left.copy()
        left.truncate(_COLUMN, pad=True)
        return left.append("  ").append_text(right)

    def _events(self) -> list[Text]:
        sent, counts, topics = self._glance.sent, self._glance.counter.counts, self._glance.settings.topics
        actions = self._glance.counter.actions
        rows = [
            ("transactions", f"{sent.good[topics.transactions]:,}", f"{counts['decisions']:,}"),
            ("clicks", f"{sent.good[topics.clicks]:,}", f"{counts['recommendations']:,}"),
            ("malformed", f"{sent.malformed.total():,}", f"{counts['dead_letters']:,}"),
            ("labels", f"{sent.good[topics.labels]:,}", ""),
        ]
        lines = [Text(f"{'':13}{'sent':>11}{'answered':>12}", style="dim")]
        lines += [Text(f"{name:13}{given:>11}{answered:>12}") for name, given, answered in rows]
        lines.append(Text(""))
        lines += [
            Text.assemble((f"{action:13}", ACTION_STYLES[action]), f"{actions[action]:>23,}")
            for action in ACTION_STYLES
        ]
        return [*lines, Text("")]

    def _latencies(self) -> list[Text]:
        page = self._recent()
        rows = [
            (kind, *self._ms(page, "headrace_end_to_end_seconds", kind=kind)) for kind in ("decision", "recommendation")
        ]
        rows += [(f"  {stage}", *self._ms(page, "headrace_stage_seconds", stage=stage)) for stage in _STAGES]
        lines = [Text(f"{'last 10 s':15}{'p50':>11}{'p99':>12}", style="dim")]
        return lines + [Text(f"{name:15}{p50:>11}{p99:>12}", style="dim" if name[0] == " " else "default")
                        for name, p50, p99 in rows]  # fmt: skip

    def _alerts(self, count: int) -> list[Text]:
        lines = []
        for alert in _last(self._glance.counter.alerts, count):
            lines += self._alert(alert)
        return lines

    def _alert(self, alert: Alert) -> list[Text]:
        schema_number = next(iter(alert.values), "")
        amount = alert.values.get(schema_number)
        shown = f"  {schema_number.removeprefix('event_')} {amount:,.2f}" if amount is not None else ""
        who = ", ".join(f"{name} {printable(id_)}" for name, id_ in alert.entities.items())
        first = Text.assemble((f"{alert.action:6}", ACTION_STYLES[alert.action]), f" {alert.score:.3f}  {who}{shown}")
        if alert.degraded is not None:
            first.append(f"  {printable(alert.degraded)}", style="yellow")
        reasons = "; ".join(reason.text for reason in alert.reasons) or _silence(alert)
        return [first, Text(f"       {printable(reasons)}", style="dim")]

    def _recommendations(self, count: int) -> list[Text]:
        lines = []
        for answer in _last(self._glance.counter.recommended, count):
            line = Text(f"{printable(answer.session_id)} saw {self._title(answer.item_id)}: ")
            lines.append(line.append(", ".join(self._title(item.item_id) for item in answer.items[:4]), style="cyan"))
        return lines

    def _title(self, item_id: str) -> str:
        return printable(self._titles.get(item_id, item_id))

    def _dead_letters(self) -> Text:
        reasons = self._glance.counter.reasons.most_common(4)
        text = Text("dead letters  ")
        found = ", ".join(f"{reason} {count:,}" for reason, count in reasons)
        return text.append(found or "none", style="red" if found else "dim")

    def _models(self) -> Text:
        text = Text("models        ")
        for place, (version, seen_s) in enumerate(reversed(self._versions[-4:])):
            age = f"{self._now_s - seen_s:.0f} s ago" if len(self._versions) > 1 else "since the start"
            text.append(f"{version} {age}  ", style="dim" if place else "green")
        return text

    def _where(self) -> Text:
        port = self._glance.settings.worker.metrics_port
        return Text(f"metrics http://127.0.0.1:{port}/metrics   logs {self._glance.directory}", style="dim")

    def _note(self) -> Text:
        if self.notes:
            return Text(self.notes[0], style="yellow")
        return Text("Ctrl-C stops everything", style="dim")


def _silence(alert: Alert) -> str:
    """What to say of an alert without reasons."""
    return "there was no time for reasons" if alert.reasons_partial else "no single feature stands out"


def _last(values: Iterable[_T], count: int) -> list[_T]:
    """The last ``count``, newest first."""
    return list(values)[-count:][::-1] if count > 0 else []


def _filled(lines: list[Text], count: int) -> list[Text]:
    return (lines + [Text("") for _ in range(count)])[: max(count, 0)]


def _rule(title: str, width: int) -> Text:
    return Text(f"── {title} " + "─" * max(0, width - len(title) - 4), style="dim")


class _Notes(logging.Handler):
    """While the screen is shown, warnings go to its last line instead of across it."""

    def __init__(self, view: View) -> None:
        super().__init__(logging.WARNING)
        self._view = view

    def emit(self, record: logging.LogRecord) -> None:
        self._view.notes.append(" ".join(record.getMessage().split()))


@contextmanager
def make_view(glance: Glance, items: Path | None, *, as_json: bool) -> Iterator[Show]:
    """The function to call with the worker's metrics, again and again, for as long as the block lasts."""
    view = View(glance, read_titles(items), time.monotonic())
    console = Console(highlight=False)
    if as_json:
        yield lambda page: None
    elif not console.is_terminal or console.width < _SIZE_MIN[0] or console.height < _SIZE_MIN[1]:
        yield _plain(view)
    else:
        with _quiet_screen(view), Live(console=console, screen=True, auto_refresh=False) as live:

            def show(page: Page | None) -> None:
                view.update(page, time.monotonic())
                live.update(Group(*view.screen(console.width, console.height)), refresh=True)

            yield show


def _plain(view: View) -> Show:
    last_s = time.monotonic()

    def show(page: Page | None) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        view.update(page, now_s)
        if now_s - last_s >= _PLAIN_EVERY_S:
            last_s = now_s
            print("\n".join(filter(None, (view.line(), view.latest()))), flush=True)

    return show


@contextmanager
def _quiet_screen(view: View) -> Iterator[None]:
    root, notes = logging.getLogger(), _Notes(view)
    screens = [h for h in root.handlers if isinstance(h, logging.StreamHandler) and h.stream is sys.stderr]
    for handler in screens:
        root.removeHandler(handler)
    root.addHandler(notes)
    try:
        yield
    finally:
        root.removeHandler(notes)
        for handler in screens:
            root.addHandler(handler)
