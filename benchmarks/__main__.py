"""Run every benchmark, print its tables, and write them down."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from benchmarks import collapse, growth, images, measures, replicas, start, step
from benchmarks.timing import Table, Timed, copy_bandwidth, machine, peak_flops

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"


def main() -> None:
    """Measure and write."""
    facts = machine()
    facts["float32 peak, one thread"] = f"{peak_flops() / 1e9:.0f} GFLOP/s"
    facts["copy"] = f"{copy_bandwidth() / 1e9:.0f} GB/s"
    facts["date"] = datetime.date.today().isoformat()
    tables: list[Table] = []
    for module in (measures, collapse, step, replicas, images, growth, start):
        for table in module.tables():
            print(as_markdown(table), flush=True)
            tables.append(table)
    results = {"machine": facts, "tables": [table.as_dict() for table in tables]}
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    growth.draw(tables, PAGE.parent / "images")
    PAGE.write_text(page(facts, tables), encoding="utf-8")


def page(facts: dict[str, str], tables: list[Table]) -> str:
    """The page of the docs."""
    head = (
        "# Benchmarks\n\n"
        "Made by `make bench`; every table is one run in which the contenders took turns. Ratios "
        "travel between machines, seconds do not.\n\n"
        "| | |\n|---|---|\n" + "".join(f"| {key} | {value} |\n" for key, value in facts.items())
    )
    picture = f"## growth\n\n![Time against size](images/{growth.PICTURE})\n"
    return head + "\n" + "\n".join([*map(as_markdown, tables), picture])


def as_markdown(table: Table) -> str:
    """A table with times and ratios."""
    lines = [
        f"## {table.name}\n",
        f"{table.question[0].upper()}{table.question[1:]}.\n",
        "| | median | range | times faster |",
        "|---|---:|---:|---:|",
    ]
    for name, timed in table.times.items():
        ratio = table.ratio(name)
        faster = f"{ratio:,.0f}" if ratio >= 20 else f"{ratio:.2g}"
        lines.append(f"| {name} | {duration(timed.median)} | {spread(timed)} | {faster} |")
    return "\n".join([*lines, "", *(f"{note}\n" for note in table.notes)])


def spread(timed: Timed) -> str:
    """The range of the rounds."""
    return f"{duration(timed.fastest)} to {duration(timed.slowest)}"


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


if __name__ == "__main__":
    main()
