"""Where the classifier head of a model is, and what goes in and out of it.

A head is an `nn.Linear` whose output is the model's logits. Axes: ``n`` examples, ``t``
positions, ``d`` width, ``c`` classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from grokscope.measures.checks import check_finite, common_dtype

# What libraries call their head: torchvision, Hugging Face, timm and others.
NAMES = ("fc", "classifier", "score", "lm_head", "head", "heads", "embed_out", "output")


def unwrapped(model: nn.Module) -> nn.Module:
    """The module within DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def find_head(model: nn.Module, name: str | None = None) -> tuple[str, nn.Linear]:
    """Name and module of the head that is named, or where libraries keep it, or the last layer.

    Raises:
        ValueError: If there is no such layer, or no linear layer at all.
    """
    linears = {key: layer for key, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    if name is not None:
        if name not in linears:
            raise ValueError(
                f"head {name!r} is not an nn.Linear of this model; it has {_listed(linears)}."
            )
        return name, linears[name]
    if not linears:
        raise ValueError(
            f"{type(model).__name__} has no nn.Linear, so there is no linear head to measure; "
            "measure features and logits yourself with grokscope.measures."
        )
    timm = getattr(model, "get_classifier", None)
    chosen = timm() if callable(timm) else None
    for key, layer in linears.items():
        if layer is chosen:
            return key, layer
    for attribute in NAMES:
        inside = [key for key in linears if key == attribute or key.startswith(f"{attribute}.")]
        if inside:
            return inside[-1], linears[inside[-1]]
    last = list(linears)[-1]
    return last, linears[last]


@contextmanager
def recorded(head: nn.Linear) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The inputs and outputs of the head, call by call, while this is open.

    Copies: a model may change its features or logits in place afterwards.
    """
    calls: list[tuple[Tensor, Tensor]] = []

    def record(
        _: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Tensor
    ) -> None:
        features = inputs[0] if inputs else keywords["input"]
        calls.append((features.detach().clone(), output.detach().clone()))

    handle = head.register_forward_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def logits_of(output: Any) -> Tensor:
    """The logits in whatever a model returns: a tensor, ``.logits``, or the first of a tuple.

    Raises:
        ValueError: If there are none.
    """
    if isinstance(output, Tensor):
        return output
    found = getattr(output, "logits", None)
    if found is None and isinstance(output, Mapping):
        found = output.get("logits")
    if found is None and isinstance(output, (tuple, list)) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise ValueError(
            f"the model returned {type(output).__name__}, which holds no logits; it must "
            "return a tensor, an object with .logits, or a tuple that starts with the logits."
        )
    return found


def aligned(
    calls: list[tuple[Tensor, Tensor]], logits: Tensor, name: str, attended: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Features and logits position by position.

    A model may apply its head at every position and return one of them for each example (GPT-2's
    classifier does, at the last token): then the positions that gave what it returned are found.

    Args:
        calls: Inputs and outputs of the head, from `recorded`.
        logits: Logits returned by the model, ``[n, c]``, ``[n, t, c]`` or flattened ``[n * t, c]``.
        name: Name of the head, for messages.
        attended: Which positions hold no padding, ``[n, t]``, if that is known.

    Raises:
        ValueError: If the head was not called once, or its output is not what the model returned.
    """
    if len(calls) != 1:
        raise ValueError(
            f"the head {name!r} was called {len(calls)} times in one forward pass, but once is "
            "needed; name the layer that makes the logits with head=..."
        )
    features, output = calls[0]
    if output.dim() == 3 and output.shape[::2] == logits.shape:
        same = _equal(output, logits.unsqueeze(1)).all(dim=-1)  # [n, t]
        if attended is not None and attended.shape == same.shape:
            # The logits of a head of zeros are equal everywhere, but counted where a token is.
            there = same & attended.to(same.device).bool()
            same = torch.where(there.any(dim=1, keepdim=True), there, same)
        position = same.shape[1] - 1 - same.flip(1).to(torch.uint8).argmax(dim=1)
        rows = torch.arange(len(position), device=position.device)
        if bool(same[rows, position].all()):
            return features[rows, position], output[rows, position]
    flattened = output.dim() > logits.dim() == 2 and output.numel() == logits.numel()
    if flattened and output.shape[-1] == logits.shape[-1]:
        features, output = features.flatten(0, -2), output.flatten(0, -2)
    if output.shape == logits.shape and _same_softmax(output, logits):
        return features, output
    check_finite("logits", output)
    raise ValueError(
        f"the output of the head {name!r} {tuple(output.shape)} is not what the model returned "
        f"{tuple(logits.shape)}; name the layer that makes the logits with head=..., and let the "
        "model return its logits as they are (no temperature, no softmax)."
    )


def _equal(one: Tensor, other: Tensor) -> Tensor:
    """Entry by entry, where NaN equals NaN: padding may hold it."""
    return (one == other) | (one.isnan() & other.isnan())


def _same_softmax(output: Tensor, logits: Tensor) -> bool:
    """Equal up to one number per row: a log-softmax behind the head changes nothing."""
    if bool(_equal(output, logits).all()):
        return True
    if not torch.equal(output.isfinite(), logits.isfinite()):
        return False
    # One rounding of the result, and a few on the way to it.
    narrow = torch.finfo(logits.dtype).eps
    output, logits = common_dtype(output, logits)
    apart = output - logits
    apart = apart - apart.mean(dim=-1, keepdim=True)
    size = torch.maximum(output.abs(), logits.abs()).amax(dim=-1, keepdim=True)
    rounding = (narrow + 8 * torch.finfo(output.dtype).eps) * size
    return not bool((apart.abs() > rounding).any())


def _listed(linears: Mapping[str, nn.Linear]) -> str:
    return ", ".join(repr(key) for key in list(linears)[-12:]) or "none"
