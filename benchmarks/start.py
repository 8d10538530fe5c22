"""How long a command takes to answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.timing import Table, race

GROKSCOPE = str(Path(sys.executable).with_name("grokscope"))


def tables() -> list[Table]:
    """``grokscope --help`` beside the import of torch that it avoids."""
    table = Table("start", "the command line answers", "python -c 'import torch'")
    commands = {
        table.baseline: [sys.executable, "-c", "import torch"],
        "grokscope --help": [GROKSCOPE, "--help"],
        "grokscope list": [GROKSCOPE, "list"],
    }
    table.times = race(
        {
            name: lambda own=own: subprocess.run(own, check=True, stdout=subprocess.DEVNULL)
            for name, own in commands.items()
        },
        rounds=5,
        seconds=0.1,
    )
    return [table]
