"""What layers give out over real images: covariances batch by batch, batch-norm recalibration."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from .measure import evaluating

Batches = Iterable[tuple[Tensor, Tensor]]


def rows(output: Tensor, layer: nn.Module) -> Tensor:
    """Lay outputs out as (positions, O): (N, O, H, W) of a convolution, (..., O) of a linear."""
    if isinstance(layer, nn.Conv2d):
        output = output.movedim(-3, -1)  # (N, H, W, O)
    return output.reshape(-1, output.shape[-1])


def covariances(
    model: nn.Module, batches: Batches, names: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and covariance of what each named layer gives out, in one pass over `batches`.

    Nothing but the sums is kept, so memory grows with the squares of the layers' widths and not
    with the images. The sums of a batch are float32, of all batches float64; responses are shifted
    by the first batch's mean before they are squared, so that a large mean does not cancel the
    digits of a small variance.

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

    with hooks_on(model, names, hook_for), evaluating(model):
        run(model, batches)
    result = {}
    for name in names:
        mean = first[name] / count[name]  # of the shifted responses
        covariance = second[name] / count[name] - mean.outer(mean)
        if not torch.isfinite(covariance).all():
            raise ValueError(f"layer {name} gives NaN or infinite values over data; check both")
        result[name] = (mean + shift[name].double().cpu(), covariance)
    return result


def sensitivities(
    model: nn.Module,
    batches: Batches,
    names: Sequence[str],
    images: int = 256,
    temperature: float = 1.0,
) -> dict[str, Tensor]:
    """How much the network's answer feels what each layer gives out: its Fisher information.

    G = E[sum over positions of g g^T], with g the gradient of -log p(answer) at the layer's output
    and the answer drawn from the network's own p (Amari 1998): no labels are needed. An error e in
    the output changes the answers by e^T G e / 2 nats, to second order and with errors at different
    positions taken as unrelated. A network that is sure of its answers has almost no gradients
    left: scores divided by a `temperature` tell more.

    Returns
    -------
    dict of name to (O, O), float64 on the CPU; from the first `images` images. Zeros for a layer
    on which the answer does not depend.

    Raises
    ------
    ValueError
        If the model gives no class scores, or no gradient leads from them back to the images.
    """
    found: dict[str, Tensor] = {}
    draw = torch.Generator().manual_seed(0)

    def hook_for(name: str):  # type: ignore[no-untyped-def]
        def note(module: nn.Module, _: object, output: Tensor) -> None:
            def add(gradient: Tensor) -> None:
                g = rows(gradient, module).float()  # (P, O)
                found[name] = found[name] + (g.mT @ g).double().cpu()

            channels = output.shape[-3 if isinstance(module, nn.Conv2d) else -1]
            found.setdefault(name, torch.zeros(channels, channels, dtype=torch.float64))
            if output.requires_grad:  # not where the model itself turns gradients off
                output.register_hook(add)  # sees the output before any in-place ReLU behind

        return note

    count = 0
    with hooks_on(model, names, hook_for), evaluating(model), torch.enable_grad():
        parts = (p for batch, _ in first_images(batches, images) for p in batch.split(32))
        for part in parts:  # few at a time: what is kept for the gradients needs memory
            part = part.to(next(model.parameters()).device).requires_grad_()
            logits = model(part.clone())  # (N, K) or (N, K, ...); a copy, may change in place
            if not isinstance(logits, Tensor) or logits.ndim < 2 or logits.shape[1] < 2:
                raise ValueError(
                    "model gives no class scores (N, K), K > 1, which data needs: use data=None"
                )
            logits = logits.float() / temperature
            p = logits.detach().softmax(1).movedim(1, -1)
            answer = torch.multinomial(p.flatten(0, -2).cpu(), 1, generator=draw)
            answer = answer.view(p.shape[:-1]).to(logits.device)
            loss = F.cross_entropy(logits, answer, reduction="sum")
            back = loss.requires_grad and torch.autograd.grad(loss, part, allow_unused=True)[0]
            if not isinstance(back, Tensor):
                raise ValueError(
                    "no gradient leads from the model's answer back to its input: take no_grad "
                    "and detach out of its forward, or use data=None"
                )
            count += len(part)
    return {name: total / max(1, count) for name, total in found.items()}


def input_covariances(
    model: nn.Module, batches: Batches, names: Sequence[str], images: int = 256
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """What convolutions take in: covariance of the channels, correlation of rows and of columns.

    Returns
    -------
    dict of name to ((C, C), (kh, kh), (kw, kw)), float64 on the CPU: their Kronecker product
    stands for the covariance of the patches (C*kh*kw) that the kernel sees. Linear layers are
    left out.
    """
    shift: dict[str, Tensor] = {}
    sums: dict[str, list[Tensor]] = {}  # (kh,), (kw,), (C,), (C, C), of images

    def add(name: str, conv: nn.Conv2d, x: Tensor) -> None:
        x = x.detach().float().reshape(-1, *x.shape[-3:])  # (N, C, H, W)
        if name not in shift:
            shift[name] = x.mean((0, 2, 3), keepdim=True)
            size = x.shape[1]
            shapes = [(n,) for n in conv.kernel_size] + [(size,), (size, size), ()]
            sums[name] = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
        x = x - shift[name]
        for axis in (0, 1):
            for lag in range(conv.kernel_size[axis]):
                step, length = lag * conv.dilation[axis], x.shape[2 + axis]
                if step < length:  # further apart than the image is large: taken as unrelated
                    a, b = (x.narrow(2 + axis, start, length - step) for start in (0, step))
                    sums[name][axis][lag] += float((a * b).mean()) * len(x)
        flat = rows(x, conv)
        positions = x.shape[2] * x.shape[3]
        sums[name][2] += flat.sum(0).double().cpu() / positions
        sums[name][3] += (flat.mT @ flat).double().cpu() / positions
        sums[name][4] += len(x)

    def hook_for(name: str):  # type: ignore[no-untyped-def]
        return lambda module, args, _: add(name, module, args[0])

    convs = [name for name in names if isinstance(model.get_submodule(name), nn.Conv2d)]
    with hooks_on(model, convs, hook_for), evaluating(model):
        run(model, first_images(batches, images))
    result = {}
    for name, (vertical, horizontal, first, second, count) in sums.items():
        mean = first / count  # of the shifted inputs
        square = mean.square().mean()
        down, across = ((lags / count - square) * (lags != 0) for lags in (vertical, horizontal))
        result[name] = (second / count - mean.outer(mean), _toeplitz(down), _toeplitz(across))
    return result


def _toeplitz(lags: Tensor) -> Tensor:
    """Correlation matrix (k, k) from the covariances at distances 0, ..., k - 1."""
    lags = lags / lags[0] if lags[0] > 0 else torch.eye(len(lags), dtype=lags.dtype)[0]
    index = torch.arange(len(lags))
    return lags[(index[:, None] - index).abs()]


def first_images(batches: Batches, images: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of the first `images` images; the labels are passed on as they are."""
    for batch, labels in batches:
        yield batch[:images], labels
        images -= len(batch)
        if images <= 0:
            return


@contextmanager
def hooks_on(
    model: nn.Module, names: Sequence[str], hook_for: Callable[[str], Callable]
) -> Iterator[None]:
    """Forward hooks on the named layers, taken off again in any case."""

    def called(hook: Callable) -> Callable:  # `layer(input=x)` looks like `layer(x)` to it
        return lambda layer, args, named, output: hook(layer, args or (*named.values(),), output)

    hooks = []
    try:
        for name in names:
            layer = model.get_submodule(name)
            hooks.append(layer.register_forward_hook(called(hook_for(name)), with_kwargs=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()


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

    Left out are those that are called more than once, so that one layer has one batch norm, and
    batch norms without running statistics, which scale every batch anew.
    """
    made_by: dict[int, tuple[str, int, Tensor]] = {}
    pairs: list[tuple[str, _BatchNorm]] = []
    calls: Counter[nn.Module] = Counter()

    def hook_for(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            calls[module] += 1
            if isinstance(module, _BatchNorm):
                layer, version, y = made_by.get(id(args[0]), ("", 0, output))
                if layer and y._version == version and module.running_var is not None:
                    pairs.append((layer, module))
            elif output.ndim == (4 if isinstance(module, nn.Conv2d) else 2):  # else others: tokens
                # Kept alive, so that no id is used twice; the version tells of changes in place.
                made_by[id(output)] = (name, output._version, output)

        return hook

    kinds = nn.Conv2d | nn.Linear | _BatchNorm
    names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    with hooks_on(model, names, hook_for), evaluating(model):
        run(model, [(example[:1], example[:1])])
    taken = Counter(name for name, _ in pairs)
    return {
        name: norm
        for name, norm in pairs
        if calls[model.get_submodule(name)] == calls[norm] == taken[name] == 1
    }


def recalibrate(model: nn.Module, batches: Batches) -> None:
    """Estimate the running statistics of all batch norms anew, in place; no weight changes.

    A truncated layer shifts and shrinks what follows; about a thousand training images are enough
    to measure the new means and variances. All batches count alike (cumulative average). Mix the
    classes: variances are measured within batches, so batches of one class give too small ones.
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
