"""Curves drawn in text, of braille characters: two by four dots each."""

from collections.abc import Mapping, Sequence
from typing import Final

Cell = tuple[str, int | None]
_BLANK: Final = 0x2800
_DOTS: Final = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # by column and row, Unicode's own order


def drawn(
    series: Sequence[Mapping[int, float]], steps: int, width: int, height: int
) -> tuple[list[list[Cell]], float, float]:
    """Draws series of finite values by step, the first of which is 1, into one picture.

    Args:
        width, height: In characters.

    Returns:
        Rows of ``(character, number of the series that it is part of)``; the values at bottom and top.
    """
    values = [value for points in series for value in points.values()]
    low, high = min(values, default=0.0), max(values, default=0.0)
    masks = [[0] * width for _ in range(height)]
    owners: list[list[int | None]] = [[None] * width for _ in range(height)]
    for number, points in enumerate(series):
        for x, y in _line(_columns(points, steps, 2 * width), low, high, 4 * height):
            masks[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
            owners[y // 4][x // 2] = number
    rows = [
        [(chr(_BLANK + mask), owner) for mask, owner in zip(*row, strict=True)]
        for row in zip(masks, owners, strict=True)
    ]
    return rows, low, high


def _columns(points: Mapping[int, float], steps: int, width: int) -> list[float | None]:
    """One value a column: the mean of its points, or what lies between those beside it."""
    gathered: dict[int, list[float]] = {}
    for step, value in points.items():
        gathered.setdefault(round((step - 1) / max(steps - 1, 1) * (width - 1)), []).append(value)
    means = {x: sum(found) / len(found) for x, found in sorted(gathered.items()) if 0 <= x < width}
    columns: list[float | None] = [means.get(x) for x in range(width)]
    for left, right in zip(list(means)[:-1], list(means)[1:], strict=True):
        for x in range(left + 1, right):
            columns[x] = means[left] + (means[right] - means[left]) * (x - left) / (right - left)
    return columns


def _line(columns: Sequence[float | None], low: float, high: float, height: int) -> list[tuple[int, int]]:
    """The dots of a line without holes; the top row is 0."""
    dots: list[tuple[int, int]] = []
    before: int | None = None
    for x, value in enumerate(columns):
        if value is None:
            before = None
            continue
        y = round((high - value) / ((high - low) or 1.0) * (height - 1))
        start = y if before is None else before + (y > before) - (y < before)
        dots += [(x, between) for between in range(min(start, y), max(start, y) + 1)]
        before = y
    return dots
