"""Train, evaluate, fine-tune, distil."""

from __future__ import annotations

import copy
import io
import pickle
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2
from tqdm.auto import tqdm

from .data import ImageSet, make_loader, written_beside
from .measure import evaluating

TEMPERATURE = 4.0  # of distillation, Hinton et al. 2015


def answers(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Which images `model` names right: bool tensor (N,), in the loader's order."""
    device = next(model.parameters()).device
    right = []
    with evaluating(model), torch.inference_mode():
        for images, labels in loader:
            images = images.to(device, memory_format=torch.channels_last)
            right.append(model(images).argmax(1).cpu() == labels.cpu())
    if not right:
        raise ValueError("loader gives no batches; pass a loader that holds images")
    return torch.cat(right)


def evaluate(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Top-1 accuracy in percent, in eval mode; the model is left as it was found."""
    return 100 * answers(model, loader).float().mean().item()


def train(
    model: nn.Module,
    images: ImageSet,
    epochs: int,
    size: int | Sequence[int],
    *,
    learning_rate: float = 0.06,
    weight_decay: float = 5e-4,
    batch_size: int = 64,
    label_smoothing: float = 0.1,
    cutmix: float = 0.0,
    teacher: nn.Module | None = None,
    holdout: ImageSet | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train `model` in place: SGD, one-cycle learning rate, an average over the last steps.

    Parameters
    ----------
    size : pixels, for all epochs or one for each; small images first save time
    learning_rate : the peak of the one-cycle schedule (Smith and Topin 2019)
    weight_decay : on the weights of convolutions and linear layers only
    cutmix : share of the batches whose images, and labels, are partly another's (Yun et al. 2019)
    teacher : adds T^2 KL(teacher, model) at T = 4 to the loss (Hinton et al. 2015)
    holdout : if given, its accuracy is recorded after every epoch
    seed : of order and augmentation
    checkpoint : file written after every epoch; if it exists, training goes on from there and
        ends with the same weights as without the interruption

    Returns
    -------
    One dict an epoch: epoch, size, loss, seconds, and accuracy (percent, of `holdout`).
        `model` ends in eval mode and holds the exponential average of its weights.

    Raises
    ------
    ValueError
        For NaN weights or loss, and for a checkpoint that is damaged or of another training.
    """
    if epochs < 1:
        raise ValueError(f"epochs={epochs} trains nothing; use 1 or more")
    if not 0 <= cutmix <= 1:
        raise ValueError(f"cutmix={cutmix} is not in [0, 1]; it is a share of the batches")
    sizes = [size] * epochs if isinstance(size, int) else list(size)
    if len(sizes) != epochs:
        raise ValueError(f"size names {len(sizes)} epochs, epochs={epochs}; give one for each")
    if not all(torch.isfinite(p).all() for p in model.parameters()):
        raise ValueError("model holds NaN or infinite weights; load or build it again")
    if len(images) < 2:
        raise ValueError(f"images holds {len(images)} images; batch norms need two or more")

    accelerator = Accelerator()
    device = accelerator.device
    layout = _memory_format(model)
    model.to(device).to(memory_format=layout)
    if teacher is not None:
        teacher = copy.deepcopy(teacher).to(device).to(memory_format=torch.channels_last).eval()

    steps_per_epoch = len(accelerator.prepare(make_loader(images, batch_size, augment=True)))
    steps = epochs * steps_per_epoch
    parts = _without_decay_on_vectors(model, weight_decay)
    optimizer = torch.optim.SGD(parts, lr=learning_rate, momentum=0.9, nesterov=True)
    warm_up = 0.25 if steps > 3 else 0.3  # a quarter of 4 steps would divide by zero
    schedule = OneCycleLR(optimizer, learning_rate, total_steps=steps + 1, pct_start=warm_up)
    # The average spans about the last twentieth of all steps.
    average = AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(max(0.0, 1 - 20 / steps)), use_buffers=True
    )
    wrapped, optimizer = accelerator.prepare(model, optimizer)

    recipe = {
        "epochs": epochs,
        "sizes": sizes,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "batch_size": batch_size,
        "images": len(images),
        "label_smoothing": label_smoothing,
        "cutmix": cutmix,
        "teacher": teacher is not None,
        "seed": seed,
        "processes": accelerator.num_processes,
        "shapes": {name: list(p.shape) for name, p in model.named_parameters()},
    }
    state = {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}
    history: list[dict[str, float]] = []
    bf16: bool | None = None
    if checkpoint is not None and checkpoint.exists():
        history, bf16 = _resume(checkpoint, recipe, state)
    if bf16 is None:
        bf16 = broadcast_object_list([_bf16_pays(model, sizes[-1], batch_size)])[0]

    bar = tqdm(
        total=steps,
        initial=len(history) * steps_per_epoch,
        desc="training",
        unit="batch",
        disable=not (progress and accelerator.is_main_process),
    )
    for epoch in range(len(history), epochs):
        start = time.perf_counter()
        torch.manual_seed(1000 * seed + epoch)  # so that a resumed training draws the same crops
        loader = accelerator.prepare_data_loader(
            make_loader(images, batch_size, sizes[epoch], augment=True, seed=1000 * seed + epoch)
        )
        wrapped.train()
        total = 0.0
        for batch, labels in loader:
            if cutmix and torch.rand(()) < cutmix:
                batch, labels = v2.CutMix(num_classes=len(images.classes))(batch, labels)
            batch = batch.contiguous(memory_format=layout)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = wrapped(batch)
                loss = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
                if teacher is not None:
                    loss = loss + distillation_loss(logits, teacher, batch)
            if not torch.isfinite(loss):
                raise ValueError(
                    f"the loss is {loss.item()} in epoch {epoch + 1}; "
                    f"lower learning_rate={learning_rate}"
                )
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            total += loss.item()
            bar.update()
        history.append(
            {
                "epoch": epoch + 1,
                "size": sizes[epoch],
                "loss": total / steps_per_epoch,
                "seconds": time.perf_counter() - start,
            }
        )
        if holdout is not None:
            loader = make_loader(holdout, 2 * batch_size, sizes[epoch])
            history[-1]["accuracy"] = evaluate(average.module, loader)
            bar.set_postfix(accuracy=f"{history[-1]['accuracy']:.1f} %")
        if checkpoint is not None and accelerator.is_main_process:
            tensors = {name: part.state_dict() for name, part in state.items()}
            content = io.BytesIO()  # torch.save to a full disk would raise no OSError
            torch.save({"recipe": recipe, "history": history, "bf16": bf16, **tensors}, content)
            with written_beside(checkpoint) as beside:
                beside.write_bytes(content.getbuffer())
    bar.close()
    broadcast(list(average.module.buffers()))  # each process's batch norms saw other images
    model.load_state_dict(average.module.state_dict())
    model.eval()
    return history


def fine_tune(
    model: nn.Module,
    teacher: nn.Module | None,
    images: ImageSet,
    epochs: int,
    size: int,
    *,
    learning_rate: float = 0.015,
    **options: Any,
) -> list[dict[str, float]]:
    """Train a compressed network on, with the dense one as its teacher: `train` at a lower rate.

    The dense network is at hand anyway, and its answers say more than labels do. `options` are
    those of `train`.
    """
    return train(
        model, images, epochs, size, teacher=teacher, learning_rate=learning_rate, **options
    )


def distillation_loss(logits: Tensor, teacher: nn.Module, batch: Tensor) -> Tensor:
    """T^2 KL(teacher, model) at T = 4, a scalar, for logits (N, classes) (Hinton et al. 2015)."""
    with torch.no_grad():
        target = F.softmax(teacher(batch).float() / TEMPERATURE, 1)  # (N, classes)
    log_p = F.log_softmax(logits.float() / TEMPERATURE, 1)
    return TEMPERATURE**2 * F.kl_div(log_p, target, reduction="batchmean")


def _without_decay_on_vectors(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of parameters: biases and batch norms are vectors and are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _memory_format(model: nn.Module) -> torch.memory_format:
    """channels_last, which is faster on CPUs, except where its backward pass breaks the heap.

    That is in strided 1 x 1 convolutions of fewer than 8 channels (uxlfoundation/oneDNN#6035),
    on processors with AVX2 only; ranks can be as small.
    """
    for m in model.modules():
        if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.in_channels < 8:
            if max(m.stride) > 1:
                return torch.contiguous_format
    return torch.channels_last


def _bf16_pays(model: nn.Module, size: int, batch_size: int) -> bool:
    """Whether a forward and backward pass is at least 10 % faster in bfloat16: measured."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type != "cpu":
        return False
    images = torch.randn(min(16, batch_size), 3, size, size)
    images = images.contiguous(memory_format=_memory_format(model))
    buffers = {name: b.clone() for name, b in model.named_buffers()}  # batch norms will move
    model.train()
    seconds = {}
    for bf16 in (False, True):
        laps = []
        for _ in range(3):  # the first warms up
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(images).float().square().mean()
            loss.backward()
            laps.append(time.perf_counter() - start)
        seconds[bf16] = min(laps[1:])
    model.zero_grad()
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    # A quick pass gains little; on maps of one pixel bfloat16 gave NaN (AVX-512, torch 2.14).
    return seconds[False] > 0.05 and seconds[True] < 0.9 * seconds[False]


def _resume(
    path: Path, recipe: dict[str, Any], state: dict[str, Any]
) -> tuple[list[dict[str, float]], bool]:
    """Load a checkpoint into the parts of `state`; returns its history and precision."""
    way_out = "delete it to start again"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        history, bf16, saved_recipe = saved["history"], saved["bf16"], saved["recipe"]
    except (OSError, EOFError, KeyError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(f"checkpoint={path} is damaged; {way_out}") from error
    differing = [key for key in recipe if saved_recipe.get(key) != recipe[key]]
    if differing:
        key = differing[0]
        what = "shapes" if key == "shapes" else f"{key}={saved_recipe.get(key)}, not {recipe[key]}"
        raise ValueError(f"checkpoint={path} is of another training ({what}); {way_out}")
    for name, part in state.items():
        part.load_state_dict(saved[name])
    return history, bf16
