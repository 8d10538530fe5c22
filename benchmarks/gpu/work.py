"""The items of a stage, one after the other: none can take the others with it."""

from __future__ import annotations

import faulthandler
import gc
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.gpu.files import NO_TIME, RUNNING, Items
from benchmarks.gpu.runner import AGAIN
from benchmarks.gpu.session import Session

Entry = dict[str, Any]  # with "status": passed, failed or skipped, and why


def run_items(
    session: Session,
    items: Items,
    work: Mapping[str, Callable[[], Entry]],
    *,
    limit: float,
    describe: Callable[[Entry], str],
) -> int:
    """Do what has not been done; what an item finds is written before the next begins.

    An item that raises has failed. One that hangs ends this process, and so does one after which
    the GPU no longer answers: a fresh process then continues with the next item.

    Args:
        session: Where, and until when; what is left at the deadline is skipped.
        items: Where entries are written.
        work: What finds an item's entry, by the item's name.
        limit: Seconds after which an item counts as hanging.
        describe: What is printed of an entry.

    Returns:
        The exit status of the stage: 0, 1 if an item failed or was left, or `AGAIN`.
    """
    items.resume()
    for name in items.left(work):
        if session.seconds_left <= 0:
            items.put(name, {"status": "skipped", "reason": NO_TIME})
            print(f"  skipped, {NO_TIME}: {name}", flush=True)
            continue
        items.put(name, {"status": RUNNING})
        begin = time.monotonic()
        with watched(name, limit):
            try:
                entry = work[name]()
            except Exception as error:
                traceback.print_exc()
                entry = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        works = not session.on_gpu or answers()
        if not works and entry["status"] == "passed":
            entry |= {"status": "failed", "reason": "the GPU did not answer any more"}
        entry["seconds"] = round(time.monotonic() - begin, 2)
        items.put(name, entry)
        print(f"  {entry['status']}: {name} {describe(entry)}".rstrip(), flush=True)
        if not works:
            return AGAIN
    return 1 if items.wrong else 0


@contextmanager
def watched(name: str, limit: float) -> Iterator[None]:
    """End this process, so that another may continue, if the block takes too long."""

    def end() -> None:
        print(f"  {name}: hangs, after {limit:.0f} s", flush=True)
        faulthandler.dump_traceback()
        os._exit(AGAIN)

    timer = threading.Timer(limit, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def answers() -> bool:
    """Free memory; returns whether the GPU still works, which it does not after its own errors."""
    gc.collect()
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True
