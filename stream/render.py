"""Messages in words, for a terminal. Pure.

Ids come from outside, so whatever cannot be printed is escaped: no id can drive the terminal that shows it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime

from rich.text import Text

from features.messages import Alert, DeadLetter, Decision, Recommendation

ACTION_STYLES = {"allow": "green", "review": "yellow", "block": "bold red"}
_PREVIEW_CHARACTERS = 120
_ITEMS_SHOWN = 5


def render(message: Decision | Alert | Recommendation | DeadLetter, titles: Mapping[str, str]) -> Text:
    """One message as one line, alerts with a line per reason. ``titles`` names items."""
    if isinstance(message, Alert):
        return _alert(message)
    if isinstance(message, Decision):
        return _decision(message).append(f"  {printable('; '.join(message.reasons))}" if message.reasons else "")
    if isinstance(message, Recommendation):
        return _recommendation(message, titles)
    return _dead_letter(message)


def printable(text: str) -> str:
    """``text`` with everything that cannot be printed escaped."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def raw_text(encoded: str) -> str:
    """Base64 of a dead letter as text; bytes that are no UTF-8 become replacement characters."""
    try:
        return base64.b64decode(encoded).decode("utf-8", "replace")
    except ValueError:
        return encoded


def moment(time_ms: int) -> str:
    """UTC date and time of epoch milliseconds."""
    try:
        return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return str(time_ms)


def _decision(message: Decision | Alert) -> Text:
    text = Text(f"{moment(message.event_time)}  ")
    text.append(f"{message.action:6}", style=ACTION_STYLES.get(message.action, ""))
    text.append(
        f"  score {message.score:.3f}  anomaly {message.anomaly:.2f}  key {printable(message.key)}  "
        f"event {printable(message.event_id)}  model {printable(message.model_version)}"
    )
    if message.degraded is not None:
        text.append(f"  {printable(message.degraded)}", style="yellow")
    return text.append("  repeated", style="dim") if message.duplicate else text


def _alert(message: Alert) -> Text:
    text = _decision(message)
    for reason in message.reasons:
        share = "     " if reason.contribution is None else f"{reason.contribution:+.2f}"
        text.append(f"\n    {share}  {printable(reason.text)}")
    return text


def _recommendation(message: Recommendation, titles: Mapping[str, str]) -> Text:
    def name(item_id: str) -> str:
        return printable(titles.get(item_id, item_id))

    who = f"session {printable(message.session_id)}" + (
        f" user {printable(message.user_id)}" if message.user_id else ""
    )
    text = Text(f"{moment(message.event_time)}  {who}  after {name(message.item_id)}: ")
    best = [f"{name(item.item_id)} {item.score:.2f}" for item in message.items[:_ITEMS_SHOWN]]
    text.append(", ".join(best) or "nothing", style="cyan")
    more = len(message.items) - _ITEMS_SHOWN
    return text.append(f" and {more} more" if more > 0 else "").append(f"  model {printable(message.model_version)}")


def _dead_letter(message: DeadLetter) -> Text:
    text = Text(f"{printable(message.topic)}:{message.partition}:{message.offset}  ")
    text.append(message.reason, style="red").append(f"  {printable(message.sentence)}  ")
    shown = ascii(raw_text(message.value)[:_PREVIEW_CHARACTERS]) + (
        "..." if message.length > _PREVIEW_CHARACTERS else ""
    )
    return text.append(f"{message.length} bytes {shown}", style="dim")
