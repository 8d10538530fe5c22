"""How a command ended, for tests that compare all of it."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass
class Done:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """What it said without line ends and the lines of tables."""
        return " ".join(re.sub(r"[\u2500-\u257f]", " ", self.out).split())
