"""Tab completion shows what is public, and nothing else."""

from __future__ import annotations

import importlib

import pytest


@pytest.mark.parametrize("room", ["measures", "interventions", "tasks"])
def test_a_room_lists_what_is_public_and_has_it(room):
    module = importlib.import_module(f"grokscope.{room}")
    assert dir(module) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in dir(module))
