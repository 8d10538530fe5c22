"""Claims by name: ours in the modules of this package, a user's in ``file.py:name``."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path

from grokscope.analysis.claims.finding import Claim
from grokscope.reference import did_you_mean, is_reference, load

YOURS = "path/to/file.py:name"


def list_claims() -> list[Claim]:
    """Our claims, by number."""
    return list(_shipped().values())


def find_claim(name: str, *, outside: Path | None = None) -> Claim:
    """The claim of this name, such as ``C7``, or a user's at ``path/to/file.py:name``.

    Args:
        name: Of the claim.
        outside: The folder of results that it is tested on, from which no code is run.

    Raises:
        ValueError: If there is none, or it cannot be loaded; says why and what there is.
    """
    if is_reference(name):
        found = load(name, outside=outside)
        if not isinstance(found, Claim):
            raise ValueError(
                f"{name} is a {type(found).__name__}, not a claim; put "
                "@grokscope.analysis.claims.claim(...) above the function"
            )
        return found
    claims = _shipped()
    if name not in claims:
        raise ValueError(
            f"there is no claim {name!r}. {did_you_mean(name.upper(), claims)}There are: "
            f"{', '.join(claims)}; your own is {YOURS}"
        )
    return claims[name]


@cache
def _shipped() -> dict[str, Claim]:
    """Every claim in a module beside this one."""
    package = __name__.rpartition(".")[0]
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    values = {
        value
        for module in modules
        for value in vars(importlib.import_module(f"{package}.{module.name}")).values()
        if isinstance(value, Claim)
    }
    claims = {claim.id: claim for claim in sorted(values, key=lambda one: (len(one.id), one.id))}
    if len(claims) < len(values):
        raise ValueError(f"two claims share an id, among {', '.join(claims)}")
    return claims
