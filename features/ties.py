"""How long a fraud ties its card, session and user to what they click: the same in training and live. Pure."""

from __future__ import annotations

TIE_DAYS = 30.0  # of event time; a card that was stolen years ago has another owner today, or is a new one
TIE_MS = int(TIE_DAYS * 86_400_000)
