"""Put recognized pieces of text back into the lines of the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Box:
    """A piece of text and its corners in pixels: top left, top right, bottom right, bottom left."""

    text: str
    corners: Sequence[tuple[float, float]]

    @property
    def left(self) -> float:
        return min(x for x, _ in self.corners)

    @property
    def height(self) -> float:
        return math.dist(self.corners[0], self.corners[3])

    @property
    def slope(self) -> float:
        (left, top), (right, end) = self.corners[0], self.corners[1]
        return (end - top) / (right - left) if right > left else 0.0

    def center(self, slope: float) -> float:
        """Return the height of its middle on a page that is turned back by `slope`."""
        x = sum(x for x, _ in self.corners) / 4
        return sum(y for _, y in self.corners) / 4 - slope * x


def in_rows(boxes: Sequence[Box]) -> list[str]:
    """Return the lines from top to bottom, the pieces of a line from left to right, joined by a space."""
    if not boxes:
        return []
    # Wide boxes tell the turn of the page best: the ends of a short word hardly differ in height.
    widest = sorted(boxes, key=lambda box: -math.dist(box.corners[0], box.corners[1]))[: len(boxes) // 3 + 1]
    slope = median(box.slope for box in widest)
    rows: list[list[Box]] = []
    for box in sorted(boxes, key=lambda box: box.center(slope)):
        if rows and box.center(slope) - rows[-1][-1].center(slope) < 0.5 * min(
            box.height, rows[-1][-1].height
        ):
            rows[-1].append(box)
        else:
            rows.append([box])
    return [" ".join(box.text for box in sorted(row, key=lambda box: box.left)) for row in rows]
