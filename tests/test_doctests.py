"""The examples in docstrings run, and say what is true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import grokscope
from grokscope import measures

MODULES = [
    module.name
    for module in pkgutil.walk_packages(grokscope.__path__, "grokscope.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:  # an optional dependency
        pytest.skip(str(error))
    torch.manual_seed(0)
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


@pytest.mark.parametrize("name", [name for name in measures.__all__ if name[0].islower()])
def test_every_public_measure_has_an_example(name):
    example = doctest.DocTestFinder().find(getattr(measures, name), name)
    assert any(test.examples for test in example)
