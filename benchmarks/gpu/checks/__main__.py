"""Stage: make every check, and write ``checks.json`` after each."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from benchmarks.gpu.checks import looks, memory, processes, repeating, steps, together
from benchmarks.gpu.files import Items
from benchmarks.gpu.session import parse
from benchmarks.gpu.work import run_items

LIMIT = 40.0  # seconds of one check
CHECKS = (  # what all else rests on comes first
    steps.twenty_steps_in_float64_equal_those_of_the_cpu,
    steps.a_captured_step_equals_an_eager_one_to_the_bit,
    repeating.the_same_run_made_twice_is_the_same_to_the_bit,
    repeating.thirty_steps_and_thirty_more_are_sixty,
    together.four_unlike_runs_side_by_side_equal_each_alone,
    together.replicas_in_one_pass_equal_each_run_alone,
    looks.a_look_in_float32_equals_one_in_float64_on_the_cpu,
    looks.a_look_in_float64_equals_one_on_the_cpu,
    looks.tf32_is_used_where_a_phase_asks_for_it_and_nowhere_else,
    steps.nothing_waits_for_the_device_between_looks,
    memory.estimated_memory_is_within_a_factor_of_two_of_the_peak,
    processes.two_spawned_workers_leave_what_one_process_leaves,
    processes.a_process_group_of_one_measures_what_a_plain_probe_does,
)


def main() -> int:
    """Make the checks that have not been made."""
    session = parse("checks")
    items = Items(session.out / "checks.json", {"device": str(session.device)})
    work = {check.name: partial(check, session) for check in CHECKS}
    return run_items(session, items, work, limit=LIMIT, describe=describe)


def describe(entry: dict[str, Any]) -> str:
    """What was measured, and what is allowed."""
    if "measured" not in entry:
        return f"({entry['reason']})"
    return f"({entry['measured']:.3g} {entry['unit']}; at most {entry['limit']:g})"


if __name__ == "__main__":
    sys.exit(main())
