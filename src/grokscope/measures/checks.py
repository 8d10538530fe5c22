"""Argument checks of the measures: a wrong argument is refused by name, with the cure.

Every check raises a ValueError that names the argument, what was wrong and the fix.

Shapes and dtypes are always checked: they cost nothing. Values (NaN, infinity, labels out of
range) are checked where they can be read: not inside ``torch.func`` transforms or
``torch.compile``, where a tensor has no value that Python could look at. On CUDA one check of
values is one synchronisation with the host; training steps leave them out (`unchecked_values`).

Axes used throughout the measures: ``examples`` (n), ``classes`` (C), ``width`` (d).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

REDUCTIONS = ("mean", "sum", "none")


class NotFiniteError(ValueError):
    """A tensor holds NaN or infinity: the network has diverged or overflowed."""


def values_are_readable(*tensors: Tensor) -> bool:
    """Whether Python can read the values: not under a functorch transform, compile or meta."""
    if torch.compiler.is_compiling():
        return False
    return not any(
        tensor.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        for tensor in tensors
    )


_unchecked = ContextVar("unchecked", default=False)


@contextmanager
def unchecked_values() -> Iterator[None]:
    """Within it no value is looked at for a check, or to choose between two ways of computing.

    What uses it finds NaN and infinity in its own way: a training step notes them on the device.
    """
    token = _unchecked.set(True)
    try:
        yield
    finally:
        _unchecked.reset(token)


def values_are_checked(*tensors: Tensor) -> bool:
    """Whether values may be looked at: Python can read them, and nobody asked not to."""
    return not _unchecked.get() and values_are_readable(*tensors)


def in_full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Autocast off for the tensor's device: it would lose small probabilities."""
    kind = tensor.device.type
    known = torch.amp.autocast_mode.is_autocast_available(kind)
    return torch.autocast(kind, enabled=False) if known else nullcontext()


def is_differentiated(tensor: Tensor) -> bool:
    """Whether operations on a tensor may have to be remembered or transformed.

    That is under autograd, in forward mode, under functorch and compile: no buffer may be reused.
    """
    if not values_are_readable(tensor) or tensor.requires_grad:
        return True
    return forward_ad.unpack_dual(tensor).tangent is not None


def check_floating(name: str, tensor: Tensor, shape: tuple[str, ...]) -> None:
    """Check that a tensor is floating, has the named axes, and none of them is empty."""
    layout = "[" + ", ".join(shape) + "]"
    if not isinstance(tensor, Tensor):
        raise ValueError(
            f"{name} must be a torch.Tensor {layout}, got {type(tensor).__name__}; "
            f"convert it with torch.as_tensor({name})."
        )
    if not tensor.is_floating_point():
        raise ValueError(
            f"{name} must be of a floating dtype, got {tensor.dtype}; "
            f"convert it with {name}.float() or {name}.double()."
        )
    if tensor.dim() != len(shape):
        raise ValueError(
            f"{name} must have shape {layout}, got {tuple(tensor.shape)}; "
            f"flatten or select axes until {len(shape)} remain."
        )
    if tensor.numel() == 0:
        raise ValueError(
            f"{name} must not be empty, got shape {tuple(tensor.shape)} for {layout}; "
            "pass at least one example and a head of at least one feature."
        )


def check_finite(name: str, tensor: Tensor) -> None:
    """Check that a tensor holds no NaN and no infinity, with one reduction.

    The sum is finite when every entry is, short of an overflow of the sum itself; only if it
    is not finite are the entries looked at, to tell the two apart and to count.

    Raises:
        NotFiniteError: If an entry is NaN or infinite.
    """
    if not values_are_checked(tensor):
        return
    plain = tensor.detach()
    if bool(plain.sum().isfinite()):
        return
    nans, infinities = int(plain.isnan().sum()), int(plain.isinf().sum())
    if nans or infinities:
        raise NotFiniteError(
            f"{name} holds {nans} NaN and {infinities} infinite of {plain.numel()} values; "
            "the model has diverged or overflowed: measure an earlier step, or compute the "
            "forward pass in a wider dtype."
        )


def check_all_finite(**tensors: Tensor) -> None:
    """Check several tensors of one device, passed by name, with one look at the host.

    Raises:
        NotFiniteError: If an entry of one of them is NaN or infinite; names the first such tensor.
    """
    if not values_are_checked(*tensors.values()):
        return
    sums = [tensor.detach().sum().float() for tensor in tensors.values()]
    if not bool(torch.stack(sums).sum().isfinite()):
        for name, tensor in tensors.items():
            check_finite(name, tensor)


def check_matrix(name: str, tensor: Tensor, *axes: str) -> None:
    """Check a finite matrix with the named axes; of ``classes`` there must be two or more."""
    check_floating(name, tensor, axes)
    if "classes" in axes:
        check_at_least_two_classes(name, tensor.shape[axes.index("classes")])
    check_finite(name, tensor)


def check_logits(logits: Tensor) -> None:
    """Check outputs of a head, ``[examples, classes]``."""
    check_matrix("logits", logits, "examples", "classes")


def check_bias(bias: Tensor, weight: Tensor) -> None:
    """Check the offsets of a head, ``[classes]``, against its rows."""
    check_floating("bias", bias, ("classes",))
    if bias.shape[0] != weight.shape[0]:
        raise ValueError(
            f"bias has {bias.shape[0]} entries but weight has {weight.shape[0]} rows (classes); "
            "pass the bias of the same head."
        )
    check_same_device(weight=weight, bias=bias)
    check_finite("bias", bias)


def check_labels(labels: Tensor, num_classes: int, examples: int | None = None) -> None:
    """Check class indices, ``[examples]``, integer, in ``[0, num_classes)``.

    ``examples`` is how many there must be, where another argument fixes it.
    """
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"labels must be a torch.Tensor [examples], got {type(labels).__name__}; "
            "convert them with torch.as_tensor(labels)."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels must be class indices of an integer dtype, got {labels.dtype}; convert them "
            "with labels.long(), or one-hot labels with labels.argmax(dim=-1)."
        )
    if labels.dim() != 1:
        raise ValueError(
            f"labels must have shape [examples], got {tuple(labels.shape)}; flatten them, or turn "
            "one-hot rows into indices with labels.argmax(dim=-1)."
        )
    if labels.numel() == 0:
        raise ValueError("labels must not be empty; pass at least one example.")
    check_at_least_two_classes("num_classes", num_classes)
    if examples is not None and labels.shape[0] != examples:
        raise ValueError(
            f"labels has {labels.shape[0]} entries for {examples} examples; "
            "pass one label per example."
        )
    if values_are_checked(labels):
        low, high = (int(bound) for bound in labels.aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"labels must lie in [0, {num_classes - 1}] for {num_classes} classes, got values "
                f"from {low} to {high}; drop ignored examples (such as -100) and check the head."
            )


def check_at_least_two_classes(name: str, num_classes: int) -> None:
    """Check that there is something to classify."""
    if num_classes < 2:
        raise ValueError(
            f"{name} describes {num_classes} class(es), but the measures need at least two; "
            "write a binary head with one output as two rows, [0, w]."
        )


def check_same_device(**tensors: Tensor) -> None:
    """Check that all tensors, passed by name, live on one device."""
    devices = {name: tensor.device for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        listing = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"All tensors must be on one device, got {listing}; move them with .to().")


def check_head(features: Tensor, logits: Tensor, weight: Tensor) -> None:
    """Check that features, logits and weight, finite, describe one linear head."""
    check_floating("features", features, ("examples", "width"))
    check_floating("logits", logits, ("examples", "classes"))
    check_floating("weight", weight, ("classes", "width"))
    check_same_examples(features, logits)
    check_width(features, weight)
    if weight.shape[0] != logits.shape[1]:
        raise ValueError(
            f"weight has {weight.shape[0]} rows (classes) but logits has {logits.shape[1]} columns "
            f"(classes); pass weight as [classes, width], as nn.Linear.weight stores it."
        )
    check_at_least_two_classes("weight", weight.shape[0])
    check_same_device(features=features, logits=logits, weight=weight)
    check_all_finite(features=features, logits=logits, weight=weight)


def check_same_examples(features: Tensor, logits: Tensor) -> None:
    """Check that there are as many logits as features."""
    if logits.shape[0] != features.shape[0]:
        raise ValueError(
            f"logits has {logits.shape[0]} examples but features has {features.shape[0]}; "
            "pass both from the same forward pass, row by row."
        )


def check_width(features: Tensor, weight: Tensor) -> None:
    """Check that the width of the features is the width of the head."""
    if weight.shape[1] != features.shape[1]:
        raise ValueError(
            f"weight has width {weight.shape[1]} but features has width {features.shape[1]}; "
            "pass features as the input of this head, and weight as [classes, width]."
        )


def check_head_of_means(mean: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """Check that weight and bias are a head for class means ``[classes, width]``."""
    check_matrix("weight", weight, "classes", "width")
    if bias is not None:
        check_bias(bias, weight)
    if weight.shape != mean.shape:
        raise ValueError(
            f"weight has [classes, width] = {tuple(weight.shape)} but the moments have "
            f"{tuple(mean.shape)}; take both from the same head."
        )
    check_same_device(weight=weight, moments=mean)


def check_reduction(reduction: str) -> None:
    """Check the name of a reduction over examples."""
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}."
        )


def check_positive(name: str, value: float) -> None:
    """Check that a setting is a positive finite number."""
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value!r}.")


def reduce_examples(values: Tensor, reduction: str) -> Tensor:
    """Reduce one value per example, ``[examples]``, by the name of a reduction."""
    check_reduction(reduction)
    if reduction == "mean":
        return values.mean()
    return values.sum() if reduction == "sum" else values


def at_least_float32(tensor: Tensor) -> Tensor:
    """Upcast half precision to float32; float32 and float64 stay as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def common_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Bring all tensors to the widest of their dtypes, at least float32."""
    wide = [at_least_float32(tensor) for tensor in tensors]
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in wide) else torch.float32
    return tuple(tensor.to(dtype) for tensor in wide)


def checked_head(features: Tensor, logits: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """A head that was checked, in one dtype of at least float32."""
    check_head(features, logits, weight)
    return common_dtype(features, logits, weight)


def checked_logits(logits: Tensor) -> Tensor:
    """Logits that were checked, of at least float32."""
    check_logits(logits)
    return at_least_float32(logits)
