"""What a network costs: parameters, MACs, milliseconds, megabytes.

MACs are not milliseconds: one convolution becomes two or three kernels, each of which reads and
writes activations. So latency is always measured: medians, fixed threads, networks in turns.

`example` is a float tensor (N, C, H, W). The model is measured in eval mode, without gradients,
and is left in the mode, and with the hooks, that it came with.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Shapes = list[tuple[tuple[int, ...], tuple[int, ...]]]  # (input, output) of each call


@dataclass(frozen=True)
class Measurement:
    """Costs of one network; MACs for one image, latency in ms by batch size, file in MB."""

    parameters: int
    macs: int
    latency_ms: dict[int, float]
    file_mb: float


def measure(model: nn.Module, example: Tensor) -> Measurement:
    """Measure everything: latency at batch sizes 1 and 32, with the threads torch has now."""
    return Measurement(
        parameters=count_parameters(model),
        macs=count_macs(model, example),
        latency_ms={batch: latency_ms(model, example, batch) for batch in (1, 32)},
        file_mb=file_mb(model),
    )


def count_parameters(model: nn.Module) -> int:
    """Numbers that training can change, each counted once. Batch-norm statistics do not count."""
    return sum(p.numel() for p in model.parameters())


def count_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates for one image, in convolutions, linear layers and matrix products.

    `FlopCounterMode` counts two operations per MAC, so half of its figure is returned.
    ValueError for an example that does not fit the model.
    """
    with FlopCounterMode(display=False) as counter:
        _run_one_image(model, example)
    return counter.get_total_flops() // 2


def layer_shapes(model: nn.Module, example: Tensor) -> dict[str, Shapes]:
    """Input and output shapes of every Conv2d and Linear, one entry a call, for one image.

    A layer that the model holds but does not call has an empty list.
    """
    shapes: dict[str, Shapes] = {}
    hooks = []
    try:
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                calls = shapes.setdefault(name, [])

                def note(module, args, kwargs, output, calls=calls):  # type: ignore
                    given = args[0] if args else kwargs["input"]
                    calls.append((tuple(given.shape), tuple(output.shape)))

                hooks.append(layer.register_forward_hook(note, with_kwargs=True))
        _run_one_image(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def file_mb(model: nn.Module) -> float:
    """Size in MB (1e6 bytes) of the model as a safetensors file, every float in float32."""
    stored = model.state_dict().keys()
    tensors = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:  # each once
        if name in stored:
            dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
            tensors[name] = tensor.detach().to("cpu", dtype, copy=True).contiguous()
    return len(save(tensors)) / 1e6


def latency_ms(
    model: nn.Module, example: Tensor, batch_size: int, threads: int | None = None, runs: int = 9
) -> float:
    """Median time in ms of one forward pass over `runs` runs, each after a warm-up.

    The batch repeats the images of `example` and keeps its dtype, device and memory format.
    `threads` None means the number torch has now; it is set back afterwards.
    """
    return compare_latency({"model": model}, example, batch_size, threads, runs)["model"]


def compare_latency(
    models: Mapping[str, nn.Module],
    example: Tensor,
    batch_size: int,
    threads: int | None = None,
    runs: int = 9,
) -> dict[str, float]:
    """Median time in ms of each model, measured in turns: each round times every model once.

    Slow spells of the machine then fall on all models alike. Every second round goes backwards.
    """
    threads = torch.get_num_threads() if threads is None else threads
    for name, value in (("batch_size", batch_size), ("threads", threads), ("runs", runs)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: give a whole number, at least 1")
    for model in models.values():
        _run_one_image(model, example)
    batch = example[torch.arange(batch_size, device=example.device) % len(example)]
    if example.is_contiguous(memory_format=torch.channels_last):
        batch = batch.contiguous(memory_format=torch.channels_last)
    from torch.utils.benchmark import Timer  # here: its import warns where CUDA has no GPU

    timers = {
        name: Timer("model(batch)", globals={"model": model, "batch": batch}, num_threads=threads)
        for name, model in models.items()
    }
    times: dict[str, list[float]] = {name: [] for name in models}
    order = list(models)
    with evaluating(*models.values()), torch.inference_mode():
        # As many calls in a run as fill 20 ms; `timeit` warms up first, with two more.
        calls = {name: round(0.02 / timer.timeit(1).median) or 1 for name, timer in timers.items()}
        for _ in range(runs):
            for name in order:
                times[name].append(1000 * timers[name].timeit(calls[name]).median)
            order.reverse()
    return {name: statistics.median(values) for name, values in times.items()}


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def check_example(example: Tensor) -> None:
    """ValueError unless `example` is a 4-D float tensor (N, C, H, W) with at least one image."""
    if not isinstance(example, Tensor):
        raise ValueError(f"example is a {type(example).__name__}: give a tensor (N, C, H, W)")
    if example.ndim != 4 or example.numel() == 0 or not example.is_floating_point():
        raise ValueError(
            f"example has shape {tuple(example.shape)} and dtype {example.dtype}: give a float "
            "tensor (N, C, H, W), for example torch.randn(1, 3, 160, 160)"
        )


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Eval mode inside, and every module's own mode again afterwards."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _run_one_image(model: nn.Module, example: Tensor) -> None:
    check_example(example)
    # The fused attention of torch calls no layers: hooks and counters would miss them.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(model), torch.no_grad():
            model(example[:1])
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"example of shape {tuple(example.shape)} does not fit the model: {reason}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
