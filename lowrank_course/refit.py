"""Refit a compressed network's layers, front to back, to what the dense layers give."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .measure import evaluating, layer_shapes
from .plan import Layer
from .responses import Batches, first_images, following_batch_norms, hooks_on, rows


def refit(
    small: nn.Module, dense: nn.Module, batches: Batches, names: Sequence[str], images: int = 256
) -> None:
    """Refit the layers of a compressed network, front to back, to what the dense ones give.

    Each cut shifts the inputs of all layers behind it, and the errors add up. So at every named
    layer, factorised or not, y of the dense network is regressed on z of the small one, and the
    result y ≈ B z + shift goes into the layer's last weight, at no cost: B W in place of W. The
    shift goes into its bias, or into the running mean of the batch norm behind. All images go
    through together, so that a layer is fitted behind its mended predecessors; this is the
    asymmetric reconstruction of Zhang et al. (2016) with the first factors kept as they are.

    Changes `small` in place. Uses at most `images` images, fewer where they would not fit into
    about one gigabyte.
    """
    device = next(dense.parameters()).device
    first = torch.cat([batch for batch, _ in first_images(batches, images)])
    shapes = layer_shapes(dense, first)
    largest = max(math.prod(out) for calls in shapes.values() for _, out in calls)
    first = first[: max(8, 2**26 // largest)].to(device)
    targets: dict[str, Tensor] = {}

    def note(name: str):  # type: ignore[no-untyped-def]
        def hook(layer: nn.Module, _: object, output: Tensor) -> None:
            targets.setdefault(name, _sampled(rows(output, layer)))

        return hook

    norms = following_batch_norms(small, first)
    behind = {small.get_submodule(name): norm for name, norm in norms.items()}

    def mend(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, _: object, output: Tensor) -> Tensor | None:
            if name not in targets:  # called before
                return None
            last: Layer = module[-1] if isinstance(module, nn.Sequential) else module  # type: ignore
            place = last.bias is not None or last in behind  # for a shift
            B, shift = _regress(targets.pop(name), _sampled(rows(output, last)), place)
            B, shift = B.to(last.weight), shift.to(last.weight)
            last.weight.copy_(torch.tensordot(B, last.weight, 1))
            matrix = B[:, :, None, None] if isinstance(last, nn.Conv2d) else B
            output = (F.conv2d if isinstance(last, nn.Conv2d) else F.linear)(output, matrix)
            if last.bias is not None:
                last.bias.copy_(B @ last.bias + shift)
                output = output + (shift[:, None, None] if isinstance(last, nn.Conv2d) else shift)
            elif last in behind:
                behind[last].running_mean.sub_(shift)  # type: ignore[union-attr]
            return output

        return hook

    with evaluating(dense, small), torch.no_grad():
        with hooks_on(dense, names, note):
            dense(first)
        with hooks_on(small, names, mend):
            small(first)


def _sampled(y: Tensor, samples: int = 8192) -> Tensor:
    """The same rows of (P, O) for every tensor with as many: they are compared."""
    chosen = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[:samples]
    return y[chosen.to(y.device)].float()


def _regress(y: Tensor, z: Tensor, shifted: bool = True) -> tuple[Tensor, Tensor]:
    """B (O, O) and shift (O,) with y ≈ B z + shift; with few rows, B stays near the identity.

    shifted=False: y ≈ B z, and the shift is 0.
    """
    y, z = y.double().cpu(), z.double().cpu()
    mean_y, mean_z = shifted * y.mean(0), shifted * z.mean(0)
    y, z = y - mean_y, z - mean_z
    variance = z.mT @ z
    ridge = max(0.01, z.shape[1] / len(z)) * variance.diagonal().mean()
    if ridge == 0:  # nothing varies
        B = torch.eye(len(variance), dtype=y.dtype)
    else:
        ridge = ridge * torch.eye(len(variance), dtype=y.dtype)
        B = torch.linalg.solve(variance + ridge, z.mT @ y + ridge).mT
    return B, mean_y - B @ mean_z
