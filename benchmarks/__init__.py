"""What grokscope costs, beside what a user would write instead, in one run on one machine.

``make bench`` runs all and writes ``docs/benchmarks.md`` and ``benchmarks/results.json``.
"""
