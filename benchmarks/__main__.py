"""Run benchmarks, print their tables, and write them down: ``python -m benchmarks [NAME ...]``."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

from benchmarks import collapse, growth, images, measures, replicas, start, step
from benchmarks.timing import Table, Timed, copy_bandwidth, machine, peak_flops

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
RESULTS = HERE / "results.json"
MODULES = (measures, collapse, step, replicas, images, growth, start)


def main(*names: str) -> None:
    """Measure and write; with names of modules, only their tables are measured anew."""
    known = {module.__name__.rpartition(".")[2]: module for module in MODULES}
    if unknown := set(names) - known.keys():
        sys.exit(f"there is no benchmark {unknown.pop()}; there are {', '.join(known)}")
    tables = stored() if names else {}
    facts = machine()
    facts["float32 peak, one thread"] = f"{peak_flops() / 1e9:.0f} GFLOP/s"
    facts["copy"] = f"{copy_bandwidth() / 1e9:.0f} GB/s"
    facts["date"] = datetime.date.today().isoformat()
    for name in names or known:
        for table in known[name].tables():
            print(as_markdown(table), flush=True)
            tables[table.name] = table
    measured = list(tables.values())
    results = {"machine": facts, "tables": [table.as_dict() for table in measured]}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    growth.draw(measured, PAGE.parent / "images")
    PAGE.write_text(page(facts, measured), encoding="utf-8")


def stored() -> dict[str, Table]:
    """The tables of the last run by name."""
    found = {}
    for entry in json.loads(RESULTS.read_text(encoding="utf-8"))["tables"]:
        times = {name: Timed(**timed) for name, timed in entry.pop("times").items()}
        del entry["ratios"]
        found[entry["name"]] = Table(**entry, times=times)
    return found


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
    main(*sys.argv[1:])
