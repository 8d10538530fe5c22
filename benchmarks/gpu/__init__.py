"""The GPU path in one command: proven, measured, and then used for real runs.

``python -m benchmarks.gpu`` runs stages as subprocesses, each with a limit, and writes what they
found after each of them; docs/gpu.md says what each file holds. A *stage* is one subprocess, an
*item* one check or one timing within it, a *size* an experiment with the seeds that time allows.
"""
