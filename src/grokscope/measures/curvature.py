r"""Ground truth for curvature: any layer, any twice-differentiable loss, by products with H.

A layer is given as ``(loss_fn, weight)``: a function from a weight to a scalar loss, and the
point where to look; `layer_loss` makes the pair for a layer of a model. Estimates come with
their standard error. Each sample costs one Hessian-vector product, about two backward passes;
the forward pass is shared. Axes of a weight: ``[out, ...]``, viewed as ``[out, in]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from grokscope.measures.checks import check_finite, check_positive

LossFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Estimate:
    """Mean of independent samples and the standard error of that mean."""

    value: float
    stderr: float

    def __str__(self) -> str:
        return f"{self.value:.6g} +- {self.stderr:.2g}"


@dataclass(frozen=True)
class Eigenvalue:
    """Largest eigenvalue; some true eigenvalue lies within ``residual`` of ``value``.

    Attributes:
        value: Rayleigh quotient of the vector found, a lower bound of the largest eigenvalue.
        residual: ``|H v - value v|`` for that unit vector, by a product of its own.
        iterations: Hessian-vector products spent on the search.
    """

    value: float
    residual: float
    iterations: int


def estimate_relative_flatness(
    loss_fn: LossFunction,
    weight: Tensor,
    samples: int = 100,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""Unbiased estimate of relative flatness for any layer and any loss.

    .. math:: \kappa = \sum_{s,s'} \langle w_s, w_{s'} \rangle \operatorname{Tr} H_{s,s'}
              = \mathbb{E}\,\langle V, H V\rangle, \qquad V = (W a)\, b^T

    with independent Rademacher vectors a and b: the expectation of :math:`a a^T` makes the inner
    products of rows, that of :math:`b b^T` the traces of blocks.

    Args:
        loss_fn: Scalar loss as a function of the weight, twice differentiable.
        weight: Point of evaluation, ``[out, in]``; a convolution ``[out, in, h, w]`` is viewed
            as ``[out, in * h * w]``.
        samples: Number of independent samples, at least two.
        generator: Source of randomness; the default generator of the device if None.

    Returns:
        Estimate in units of the loss; lower is flatter. It may be negative where the loss is
        not convex in the weight.

    Raises:
        ValueError: If the weight is no finite matrix or convolution of float32 or float64, the
            loss is no scalar, or fewer than two samples are asked for.
        RuntimeError: If the model has an operation without a second derivative.

    Cost: one forward pass and ``samples`` Hessian-vector products.
    Source: Petzka et al., NeurIPS 2021, Definition 3; the estimator is derived above.

    Example:
        >>> weight = torch.eye(2)
        >>> estimate = estimate_relative_flatness(lambda weight: weight.square().sum(), weight)
        >>> estimate.value  # the Hessian is 2 times the identity
        8.0
    """
    check_samples(samples)
    hessian = _Hessian(loss_fn, weight, min_axes=2)
    matrix = hessian.point.detach().flatten(1)

    def sample() -> Tensor:
        left = matrix @ _rademacher((matrix.shape[1],), matrix, generator)
        direction = torch.outer(left, _rademacher((matrix.shape[1],), matrix, generator))
        return hessian.quadratic_form(direction.view_as(weight))

    return _mean_of(sample, samples)


def hessian_trace(
    loss_fn: LossFunction,
    weight: Tensor,
    samples: int = 100,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""Unbiased estimate of the trace of the Hessian: :math:`\mathbb{E}\, v^T H v`, v Rademacher.

    Args:
        loss_fn: Scalar loss as a function of the weight, twice differentiable.
        weight: Point of evaluation, any shape.
        samples: Number of independent samples, at least two.
        generator: Source of randomness; the default generator of the device if None.

    Returns:
        Estimate in units of the loss per squared unit of the weight.

    Raises:
        ValueError: As `estimate_relative_flatness`.
        RuntimeError: If the model has an operation without a second derivative.

    Cost: one forward pass and ``samples`` Hessian-vector products.
    Source: Hutchinson, Communications in Statistics 1989.

    Example:
        >>> hessian_trace(lambda weight: weight.square().sum(), torch.zeros(3)).value
        6.0
    """
    check_samples(samples)
    hessian = _Hessian(loss_fn, weight, min_axes=1)

    def sample() -> Tensor:
        return hessian.quadratic_form(_rademacher(tuple(weight.shape), weight, generator))

    return _mean_of(sample, samples)


def top_eigenvalue(
    loss_fn: LossFunction,
    weight: Tensor,
    tolerance: float = 1e-4,
    max_iterations: int = 60,
    generator: torch.Generator | None = None,
) -> Eigenvalue:
    """Algebraically largest eigenvalue of the Hessian, by Lanczos from a random start.

    Every new direction is orthogonalised against all earlier ones, so that rounding brings no
    ghost eigenvalues.

    Args:
        loss_fn: Scalar loss as a function of the weight, twice differentiable.
        weight: Point of evaluation, any shape.
        tolerance: Stop once the residual is this fraction of the eigenvalue.
        max_iterations: Stop then at the latest. The result is returned with its residual, which
            then says how far to trust it.
        generator: Source of randomness; the default generator of the device if None.

    Returns:
        Eigenvalue with its residual, in units of the loss per squared unit of the weight.

    Raises:
        ValueError: As `estimate_relative_flatness`, or if a setting is not positive.
        RuntimeError: If the model has an operation without a second derivative.

    Cost: at most ``max_iterations + 1`` Hessian-vector products, and as many copies of the
    weight in memory. Source: Lanczos, J. Res. Nat. Bur. Standards 1950.

    Example:
        >>> scales = torch.tensor([1.0, 3.0])
        >>> found = top_eigenvalue(lambda weight: (scales * weight.square()).sum(), torch.zeros(2))
        >>> round(found.value, 4)
        6.0
    """
    check_positive("tolerance", tolerance)
    check_positive("max_iterations", max_iterations)
    hessian = _Hessian(loss_fn, weight, min_axes=1)
    start = _rademacher((weight.numel(),), weight, generator)
    basis = (start / start.norm())[None]
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        image = hessian(basis[-1].view_as(weight)).flatten()
        diagonal.append(float(basis[-1] @ image))
        for _ in range(2):  # twice is enough: what rounding left the first time is removed
            image = image - basis.mT @ (basis @ image)
        beside.append(float(image.norm()))
        steps = len(diagonal)
        inner = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        links = torch.tensor(beside[:-1], dtype=torch.float64)
        values, vectors = torch.linalg.eigh(
            inner + torch.diag(links, 1) + torch.diag(links, -1) if steps > 1 else inner
        )
        last = float(vectors[-1, -1].abs()) * beside[-1]
        # An invariant subspace is exhausted: what is left of the image is rounding.
        exhausted = beside[-1] <= torch.finfo(weight.dtype).eps * float(values.abs().max())
        enough = last <= tolerance * abs(float(values[-1])) or exhausted
        if enough or steps >= min(max_iterations, weight.numel()):
            break
        basis = torch.cat([basis, (image / image.norm())[None]])
    found = vectors[:, -1].to(basis) @ basis
    found = found / found.norm()
    image = hessian(found.view_as(weight)).flatten()
    value = float(found @ image)
    return Eigenvalue(value, float((image - value * found).norm()), steps)


def layer_loss(
    model: nn.Module,
    layer: str,
    loss: Callable[[Any, Any], Tensor],
    batch: tuple[Any, Any],
    evaluate: bool = True,
) -> tuple[LossFunction, Tensor]:
    """Loss of a model on one batch as a function of one layer's weight alone.

    Args:
        model: Any module. Its modes, gradients, parameters and buffers stay untouched.
        layer: Name of a submodule with a ``weight``, as in ``model.named_modules()``. A weight
            tied to another layer is varied in this layer only. A weight that is computed, as
            under ``spectral_norm``, is none.
        loss: ``loss(outputs, targets)``, scalar.
        batch: ``(inputs, targets)``; inputs are a tensor, a tuple of positional or a mapping of
            keyword arguments.
        evaluate: Run in evaluation mode (no dropout, running statistics in BatchNorm) and set
            all modes back afterwards. If False, modules run in the modes they are in: BatchNorm
            then uses the batch and updates copies of its statistics; dropout draws anew at each
            call, from the global generator.

    Returns:
        ``(loss_fn, weight)``, ready for the functions of this module; weight is a copy.

    Raises:
        ValueError: If the model has no such layer, it has no weight, or the batch is no pair.

    Cost: nothing until ``loss_fn`` is called, then one forward pass. Attention runs on the math
    backend, the only one of PyTorch with second derivatives; a model of ``transformers`` works
    with ``attn_implementation`` "eager" or "sdpa".

    Example:
        >>> model, batch = nn.Linear(2, 2), (torch.eye(2), torch.arange(2))
        >>> loss_fn, weight = layer_loss(model, "", nn.functional.cross_entropy, batch)
        >>> bool(loss_fn(weight) > 0), tuple(weight.shape)
        (True, (2, 2))
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    weighted = [name for name, module in modules.items() if _has_weight(module)]
    if layer not in weighted:
        raise ValueError(
            f"layer {layer!r} is not a submodule with a weight; this model has "
            f"{', '.join(map(repr, weighted)) or 'none'}."
        )
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ValueError("batch must be a pair (inputs, targets); wrap the inputs in a tuple.")
    inputs, targets = batch
    name = f"{layer}.weight" if layer else "weight"

    def loss_fn(weight: Tensor) -> Tensor:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        state = {key: value.detach() for key, value in parameters.items()}
        buffers = dict(model.named_buffers(remove_duplicate=False))
        state |= {key: value.clone() for key, value in buffers.items()}
        state[name] = weight
        args, kwargs = as_arguments(inputs)
        with modes_kept(model, evaluate), sdpa_kernel(SDPBackend.MATH):
            outputs = functional_call(model, state, args, kwargs, tie_weights=False)
        return loss(outputs, targets)

    weight = modules[layer].weight
    assert isinstance(weight, Tensor)
    return loss_fn, weight.detach().clone()


def check_samples(samples: int) -> None:
    """Check that there are enough samples for a standard error."""
    if not hasattr(samples, "__index__"):
        raise ValueError(f"samples must be a whole number, got {samples!r}.")
    if samples < 2:
        raise ValueError(f"samples must be at least 2 to have a standard error, got {samples}.")


class _Hessian:
    """Products with the Hessian of a loss at one point; forward and first backward run once."""

    def __init__(self, loss_fn: LossFunction, weight: Tensor, min_axes: int) -> None:
        if weight.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"weight must be float32 or float64, got {weight.dtype}; second derivatives need "
                "the precision: convert the model and the batch with .float() or .double()."
            )
        if weight.dim() < min_axes or weight.numel() == 0:
            raise ValueError(
                f"weight must have at least {min_axes} non-empty axes, got shape "
                f"{tuple(weight.shape)}; pass a matrix [out, in] or a convolution [out, in, h, w]."
            )
        check_finite("weight", weight)
        self.point = weight.detach().clone().requires_grad_()
        with torch.enable_grad():
            value = loss_fn(self.point)
            if not isinstance(value, Tensor) or value.numel() != 1:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"loss_fn must return a scalar tensor, got {shape}; reduce it with .mean()."
                )
            check_finite("loss_fn(weight)", value)
            gradient = None
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(
                    value.squeeze(), self.point, create_graph=True, allow_unused=True
                )
            if gradient is None:
                raise ValueError(
                    "loss_fn must depend on the weight it is given; use the argument inside, "
                    "not a parameter of the model (layer_loss does this)."
                )
        self.gradient = gradient

    def __call__(self, direction: Tensor) -> Tensor:
        if not self.gradient.requires_grad:  # the loss is linear in the weight
            return torch.zeros_like(self.point)
        reason = "the gradient is cut off from the weight."
        product = None
        try:
            (product,) = torch.autograd.grad(
                self.gradient,
                self.point,
                direction.view_as(self.point),
                retain_graph=True,
                allow_unused=True,
            )
        except RuntimeError as error:
            if "not implemented" not in str(error) and "twice" not in str(error):
                raise
            reason = str(error)
        if product is None:
            raise RuntimeError(
                "The loss has an operation without a second derivative; run attention with the "
                f"eager or math implementation (layer_loss does). PyTorch says: {reason}"
            )
        return product

    def quadratic_form(self, direction: Tensor) -> Tensor:
        """<direction, H direction>, accumulated in float64 where the device has it."""
        terms = direction.view_as(self.point) * self(direction)
        return terms.sum() if terms.device.type == "mps" else terms.double().sum()


def _rademacher(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    signs = torch.randint(0, 2, shape, generator=generator, device=device)
    return (2 * signs - 1).to(like)


def _mean_of(sample: Callable[[], Tensor], samples: int) -> Estimate:
    values = torch.stack([sample() for _ in range(samples)]).cpu().double()
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(samples))


def _has_weight(module: nn.Module) -> bool:
    # To look at ``module.weight`` may compute it: a parametrised one is no parameter of its layer.
    return any(name == "weight" for name, _ in module.named_parameters(recurse=False))


def as_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a model: a tuple, a mapping, or one argument."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


@contextmanager
def modes_kept(model: nn.Module, evaluate: bool) -> Iterator[None]:
    """Evaluation mode inside if asked for; afterwards every module has the mode it had."""
    before = {module: module.training for module in model.modules()}
    try:
        if evaluate:
            model.eval()
        yield
    finally:
        for module, training in before.items():
            module.training = training
