"""The files of one session: JSON that is whole whenever the session is cut."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from grokscope.runs.files import write_text

RUNNING = "running"  # status of an item that has been started and has not ended
NO_TIME = "no time was left"  # reason of one that was skipped


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


class Items:
    """The items of a stage by name, in a file that is rewritten after each of them.

    Args:
        path: The file. What it holds already is kept, so that a stage which was ended in one item
            continues with the next.
        facts: What holds for all items.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any] | None = None) -> None:
        self.path, self.facts = path, dict(facts or {})
        self.entries: dict[str, dict[str, Any]] = read_json(path).get("items", {})

    def resume(self) -> None:
        """Say that what was running when an earlier process ended has failed."""
        reason = "the process ended, or was ended, while this ran; see the output"
        for name, entry in self.entries.items():
            if entry["status"] == RUNNING:
                self.put(name, entry | {"status": "failed", "reason": reason})

    def put(self, name: str, entry: Mapping[str, Any]) -> None:
        """Set an entry and write the file."""
        self.entries[name] = dict(entry)
        write_json(self.path, self.facts | {"items": self.entries})

    def left(self, names: Iterable[str]) -> list[str]:
        """Those of some names that have not been tried."""
        return [name for name in names if name not in self.entries]

    @property
    def wrong(self) -> list[str]:
        """A line for each item that failed, was not finished, or was left for want of time."""
        return [
            f"{name}: {entry.get('reason') or 'not finished'}"
            for name, entry in self.entries.items()
            if entry["status"] in ("failed", RUNNING) or entry.get("reason") == NO_TIME
        ]
