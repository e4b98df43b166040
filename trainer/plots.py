"""A line plot as SVG text, for reports that open in any browser. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT, _MARGIN, _TICKS = 520, 360, 56, 5
_FONT = 'font-family="sans-serif" font-size="12"'


def line_plot(x: str, y: str, points: Sequence[tuple[float, float]], *, limits: tuple[float, float] = (1.0, 1.0),
              diagonal: bool = False, levels: Sequence[float] = ()) -> str:  # fmt: skip
    """A line through ``points``, in a frame from (0, 0) to ``limits`` with ``x`` and ``y`` written along it.

    ``levels`` are heights of dashed lines across.

    >>> line_plot("recall", "precision", [(0, 1), (1, 0.5)]).count("polyline")
    1
    """
    middle = _HEIGHT / 2
    wide, high = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return _MARGIN + wide * point[0] / limits[0], _HEIGHT - _MARGIN - high * point[1] / limits[1]

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {_FONT}>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<rect x="{_MARGIN}" y="{_MARGIN}" width="{wide}" height="{high}" fill="none" stroke="#888"/>',
    ]
    for tick in range(_TICKS + 1):
        across, up = limits[0] * tick / _TICKS, limits[1] * tick / _TICKS
        (left, _), (_, top) = place((across, 0)), place((0, up))
        parts.append(f'<text x="{left:.1f}" y="{_HEIGHT - _MARGIN + 16}" text-anchor="middle">{across:.3g}</text>')
        parts.append(f'<text x="{_MARGIN - 6}" y="{top + 4:.1f}" text-anchor="end">{up:.3g}</text>')
        parts.append(f'<path d="M{_MARGIN} {top:.1f}h{wide}" stroke="#ddd"/>')
    if diagonal:
        (a, b), (c, d) = place((0, 0)), place(limits)
        parts.append(f'<path d="M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}" stroke="#888" stroke-dasharray="4"/>')
    for level in levels:
        left, height = place((0, level))
        parts.append(f'<path d="M{left:.1f} {height:.1f}h{wide}" stroke="#888" stroke-dasharray="4"/>')
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in map(place, points))
    parts += [
        f'<polyline points="{line}" fill="none" stroke="#1f5fa8" stroke-width="2"/>',
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 12}" text-anchor="middle">{escape(x)}</text>',
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">{escape(y)}</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"
