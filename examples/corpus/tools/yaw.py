"""Decide when a nacelle turns towards the wind.

Turning wears the brakes and the gear rim; standing askew loses power with the cube of the cosine. So the nacelle waits
until the error is both large and lasting.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import atan2, cos, degrees, radians, sin

DEADBAND = 8.0  # degrees: smaller errors cost less than 3 % of power and are ignored
PATIENCE = 180  # seconds for which the error must last before anything moves
UNTWIST_AT = 2.5  # turns of the cables, the limit of fault code E-310


def mean_direction(directions: list[float]) -> float:
    """The circular mean in degrees: 350 and 10 give 0, not 180."""
    east = sum(sin(radians(d)) for d in directions)
    north = sum(cos(radians(d)) for d in directions)
    return degrees(atan2(east, north)) % 360


@dataclass
class YawController:
    """One nacelle: where it points, and how often it has gone round."""

    heading: float = 0.0
    turns: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=PATIENCE))

    def error(self) -> float:
        """Signed error in degrees, -180 to 180: how far the nacelle should turn to the right."""
        return (mean_direction(list(self.recent)) - self.heading + 180) % 360 - 180

    def step(self, wind_direction: float) -> float:
        """Take one reading a second; return how many degrees to turn now, which is mostly zero."""
        self.recent.append(wind_direction)
        if abs(self.turns) > UNTWIST_AT:
            return self.untwist()
        if len(self.recent) < PATIENCE or abs(self.error()) < DEADBAND:
            return 0.0
        return self.turn(self.error())

    def turn(self, angle: float) -> float:
        self.heading = (self.heading + angle) % 360
        self.turns += angle / 360
        self.recent.clear()
        return angle

    def untwist(self) -> float:
        """Go back by whole turns, so that the cables hang straight and the heading stays."""
        return self.turn(-360.0 * round(self.turns))
