"""Claims by name: ours in the modules of this package, a user's in ``file.py:name``."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from pathlib import Path

from grokscope.analysis.claims.finding import Claim
from grokscope.reference import is_reference, load

YOURS = "path/to/file.py:name"


def list_claims() -> list[Claim]:
    """Our claims, by number."""
    return list(_shipped().values())


def find_claim(name: str) -> Claim:
    """The claim of this name, such as ``C7``, or a user's at ``path/to/file.py:name``.

    Raises:
        ValueError: If there is none, or it cannot be loaded; says why and what there is.
    """
    if is_reference(name):
        found = load(name)
        if not isinstance(found, Claim):
            raise ValueError(
                f"{name} is a {type(found).__name__}, not a claim; put "
                "@grokscope.analysis.claims.claim(...) above the function"
            )
        return found
    claims = _shipped()
    if name not in claims:
        close = difflib.get_close_matches(name.upper(), claims, n=1)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise ValueError(
            f"there is no claim {name!r}. {hint}There are: {', '.join(claims)}; your own is {YOURS}"
        )
    return claims[name]


@cache
def _shipped() -> dict[str, Claim]:
    """Every claim in a module beside this one."""
    package = __name__.rpartition(".")[0]
    modules = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    values = [
        value
        for name in modules
        for value in vars(importlib.import_module(f"{package}.{name}")).values()
        if isinstance(value, Claim)
    ]
    ordered = sorted(values, key=lambda claim: (len(claim.id), claim.id))
    claims = {claim.id: claim for claim in ordered}
    if len(claims) < len({id(value) for value in values}):
        raise ValueError(
            f"two claims share an id, among {', '.join(claim.id for claim in ordered)}"
        )
    return claims
