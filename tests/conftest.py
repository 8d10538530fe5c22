"""One thread per test process: small tensors, and pytest-xdist fills the cores."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from command_line import Done

torch.set_num_threads(1)


@pytest.fixture
def grokscope(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], Done]:
    """Runs a command line as the shell would, in an empty folder."""
    from grokscope.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # references extend it
    monkeypatch.delenv("GROKSCOPE_TRACEBACK", raising=False)

    def run(line: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["grokscope", *shlex.split(line)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Done(code, *capsys.readouterr())

    return run
