"""What travels to a device machine: small enough, complete, and started by one line."""

from __future__ import annotations

import re
import shlex
import subprocess
from argparse import Namespace
from importlib.metadata import requires
from pathlib import Path

import pytest
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import send
from benchmarks.gpu.runner import ROOT


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def options(**flags: bool) -> Namespace:
    return Namespace(**{"checks_only": False, "flatness_only": False} | flags)


def test_whatever_a_wheel_needs_travels_with_it():
    travelling = {normal(name) for name in send.MISSING}
    for name in send.MISSING:
        needed = [text for text in requires(name) or [] if "extra ==" not in text]
        assert {normal(re.match(r"[\w.-]+", text)[0]) for text in needed} <= travelling


def test_the_versions_of_the_wheels_are_pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normal(line.partition("==")[0]) for line in lines if "==" in line}
    assert {normal(name) for name in send.MISSING} <= pinned


@pytest.mark.parametrize("flag", ["checks_only", "flatness_only", None])
def test_the_line_is_short_and_the_command_understands_it(flag):
    text = send.line(options(**{flag: True} if flag else {}), "0123456789ab-dirty")
    assert len(text) <= send.MOST_LETTERS
    text, _, rest = text.rpartition("&&")[2].replace("$OUT", "/out").partition(" 2>&1 | ")
    assert rest == "tee /out/log.txt"
    words = shlex.split(text)
    assert words[:3] == ["python3", "-m", "benchmarks.gpu"]
    parsed = command.parser().parse_args(words[3:])
    assert (parsed.pack_into, parsed.revision) == (Path("/out"), "0123456789ab-dirty")
    assert parsed.out != parsed.pack_into
    assert (parsed.checks_only, parsed.flatness_only) == (
        flag == "checks_only", flag == "flatness_only",
    )  # fmt: skip


def test_all_modes_end_before_the_device_tool_ends_them():
    for flag in ("checks_only", "flatness_only", "tiny", None):
        flags = {"checks_only": False, "flatness_only": False, "tiny": False}
        assert command.seconds(Namespace(**flags | ({flag: True} if flag else {}))) < 600


def checkout(folder: Path) -> Path:
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    (folder / ".gitignore").write_text("/.gpu/\n/ignored\n")
    (folder / "ignored").write_bytes(bytes(1000))
    (folder / "untracked").write_bytes(bytes(100))
    (folder / "tracked").write_bytes(bytes(20))
    subprocess.run(["git", "-C", str(folder), "add", "tracked", ".gitignore"], check=True)
    return folder


def test_what_travels_is_what_git_does_not_ignore_and_what_is_carried(tmp_path):
    root = checkout(tmp_path / "checkout")
    source = tmp_path / "data"
    source.mkdir()
    (source / "train.parquet").write_bytes(bytes(3000))
    send.copy_data(source, root / send.DATA)
    ignore = len((root / ".gitignore").read_bytes())
    assert send.travelling(root) == {
        "the checkout": 120 + ignore, send.DATA: 3000, send.WHEELS: 0,
    }  # fmt: skip


def test_too_much_is_refused_with_what_is_how_large():
    send.check_size({"the checkout": 30 * 2**20, send.DATA: 34 * 2**20})
    with pytest.raises(ValueError, match=r"64.1 MiB would travel.*the checkout 30.0 MiB"):
        send.check_size({"the checkout": 30 * 2**20, send.DATA: 34 * 2**20 + 10**5})


def test_missing_data_are_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(ValueError, match="holds no Parquet files"):
        send.copy_data(tmp_path, tmp_path / "there")


def test_git_ignores_what_is_carried_and_what_the_command_writes():
    for name in (send.DATA, send.WHEELS, "runs/gpu"):
        done = subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", f"{name}/file"])
        assert done.returncode == 0, name
