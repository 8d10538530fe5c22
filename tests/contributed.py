"""The experiment that CONTRIBUTING shows, in a folder, and run there as its reader would."""

from __future__ import annotations

import re
from pathlib import Path

from test_docs import GROKSCOPE, ROOT, blocks, called

WISHES = ("spread.py", "blobs.py", "tight.py", "lengths.py", "study.py")


def run_contributed(folder: Path) -> Path:
    """Write the page's files, run its experiment, and return the folder of results."""
    for block in blocks(ROOT / "CONTRIBUTING.md", "python"):
        (name,) = re.findall(r"^# file: (\w+\.py)$", block, re.MULTILINE)
        (folder / name).write_text(block, encoding="utf-8")
    called(folder, GROKSCOPE, "run", "study.py:experiment")
    return folder / "runs" / "short-features"
