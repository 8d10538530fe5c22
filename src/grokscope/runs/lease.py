"""Who runs a segment: a lease that its holder renews and that expires when the holder is gone.

The lease is a file beside the segment, so it works between machines that share a folder. Expiry is
timed by the process that waits, on its own clock; clocks of two machines are never compared.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from filelock import SoftFileLease, Timeout

EXPIRY = 30.0  # seconds without a renewal; all processes on a store must agree on it
RENEWAL = 5.0  # seconds between renewals


class SegmentBusyError(RuntimeError):
    """Another process is running this segment."""


class LeaseLostError(SegmentBusyError):
    """Another process has taken a segment over, and this one may not write its results."""


class Lease:
    """The right to run one segment.

    The lease of a process that has ended is free at once on its own machine, and after ``expiry``
    seconds on others. To see that, keep one object and ask it repeatedly: a new one starts anew.

    Args:
        path: The file; its folder must exist.
        expiry: Seconds without a renewal after which others may take it.
        renewal: Seconds between renewals.
    """

    def __init__(self, path: Path, expiry: float = EXPIRY, renewal: float = RENEWAL) -> None:
        self.path, self.expiry = path, expiry
        self._file = SoftFileLease(
            path, timeout=0, lease_duration=expiry, heartbeat_interval=renewal
        )
        self._seen: tuple[tuple[int, int, int], float] | None = None

    def take(self) -> bool:
        """Take the lease if it is free or has expired; returns whether that succeeded."""
        try:
            self._file.acquire()
        except Timeout:
            self._remove_abandoned()
            return False
        return True

    def free(self) -> None:
        """Give the lease back; one that a successor holds is left alone."""
        self._file.release()

    def held(self) -> bool:
        """Whether this process still holds it, by the file: one that slept has not renewed it."""
        owner = self._file.owner
        is_owner = owner is not None and owner.token == self._file.token
        return is_owner and self._file.compromise is None

    def _remove_abandoned(self) -> None:
        """Remove a file that nobody has renewed for twice the expiry.

        The library takes a lease over by exchanging two names, which NFS and SMB refuse, and never
        takes over an empty file, which a process killed between two system calls leaves. Between
        this look and the removal a rival may have renewed the lease; it sees that it has lost it
        before it writes anything.
        """
        try:
            with self.path.open("rb") as file:  # opening makes NFS ask the server for the times
                facts = os.fstat(file.fileno())
        except OSError:
            return
        mark = (facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns)
        now = time.monotonic()
        if self._seen is None or self._seen[0] != mark:
            self._seen = (mark, now)
        elif now - self._seen[1] >= 2 * self.expiry:
            self._file.force_break()
