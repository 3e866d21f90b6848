"""What layers give out over real images: covariances batch by batch, batch-norm recalibration."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .measure import evaluating

Batches = Iterable[tuple[Tensor, Tensor]]


def rows(output: Tensor, layer: nn.Module) -> Tensor:
    """Lay outputs out as (positions, O): (N, O, H, W) of a convolution, (..., O) of a linear."""
    if isinstance(layer, nn.Conv2d):
        output = output.movedim(1, -1)  # (N, H, W, O)
    return output.reshape(-1, output.shape[-1])


def covariances(
    model: nn.Module, batches: Batches, names: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and covariance of what each named layer gives out, in one pass over `batches`.

    Nothing but the sums is kept, so memory grows with the squares of the layers' widths and not
    with the images. Sums are float64; responses are shifted by the first batch's mean before they
    are squared, so that a large mean does not cancel the digits of a small variance.

    Returns
    -------
    dict of name to (mean (O,), covariance (O, O)), float64 on the CPU.

    Raises
    ------
    ValueError
        If `batches` is empty or a layer gives NaN.
    """
    shift: dict[str, Tensor] = {}
    count = dict.fromkeys(names, 0)
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}

    def hook_for(name: str):  # type: ignore[no-untyped-def]
        def add(module: nn.Module, _: object, output: Tensor) -> None:
            y = rows(output.detach(), module).float()  # (P, O)
            if name not in shift:
                shift[name] = y.mean(0)
                first[name] = torch.zeros(y.shape[1], dtype=torch.float64)
                second[name] = torch.zeros(y.shape[1], y.shape[1], dtype=torch.float64)
            y = y - shift[name]
            count[name] += len(y)
            first[name] += y.sum(0).double().cpu()
            second[name] += (y.mT @ y).double().cpu()

        return add

    hooks = [model.get_submodule(name).register_forward_hook(hook_for(name)) for name in names]
    try:
        with evaluating(model):
            run(model, batches)
    finally:
        for hook in hooks:
            hook.remove()
    result = {}
    for name in names:
        mean = first[name] / count[name]  # of the shifted responses
        covariance = second[name] / count[name] - mean.outer(mean)
        if not torch.isfinite(covariance).all():
            raise ValueError(f"layer {name} gives NaN or infinite values over data; check both")
        result[name] = (mean + shift[name].double().cpu(), covariance)
    return result


def run(model: nn.Module, batches: Batches) -> None:
    """One forward pass over all batches, without gradients and in the model's present mode."""
    device = next(model.parameters()).device
    empty = True
    with torch.no_grad():
        for images, _ in batches:
            model(images.to(device))
            empty = False
    if empty:
        raise ValueError(
            "data gives no batches (or is used up after one pass); pass a DataLoader or a list"
        )


def following_batch_norms(model: nn.Module, example: Tensor) -> dict[str, _BatchNorm]:
    """Which batch norm takes the output of which layer directly, seen in one forward pass.

    Batch norms that keep no running statistics scale every batch anew and are left out.
    """
    made_by: dict[int, tuple[str, int, Tensor]] = {}
    found: dict[str, _BatchNorm] = {}

    def remember(name: str):  # type: ignore[no-untyped-def]
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            # Kept alive, so that no id is used twice; the version tells of changes in place.
            made_by[id(output)] = (name, output._version, output)

        return hook

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args and id(args[0]) in made_by:
            name, version, output = made_by[id(args[0])]
            if output._version == version and module.running_var is not None:
                found[name] = module  # type: ignore[assignment]

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            hooks.append(module.register_forward_hook(remember(name)))
        elif isinstance(module, _BatchNorm):
            hooks.append(module.register_forward_pre_hook(look))
    try:
        with evaluating(model):
            run(model, [(example[:1], example[:1])])
    finally:
        for hook in hooks:
            hook.remove()
    return found


def batch_norm_scale(norm: _BatchNorm) -> Tensor:
    """What an eval-mode batch norm multiplies each channel by: gamma / sqrt(var + eps), (O,)."""
    if norm.running_var is None:
        raise ValueError(f"{norm} keeps no running statistics; build it with them")
    gamma = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight
    return (gamma / (norm.running_var + norm.eps).sqrt()).detach().double().cpu()


def recalibrate(model: nn.Module, batches: Batches) -> None:
    """Estimate the running statistics of all batch norms anew, in place; no weight changes.

    A truncated layer shifts and shrinks what follows; about a thousand training images are enough
    to measure the new means and variances. All batches count alike (cumulative average).
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms]
    try:
        with evaluating(model):  # dropout stays off
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None  # the cumulative average
            run(model, batches)
    except BaseException:
        for norm, (_, state) in zip(norms, before, strict=True):
            norm.load_state_dict(state)
        raise
    finally:
        for norm, (momentum, _) in zip(norms, before, strict=True):
            norm.momentum = momentum
