"""ResNet-18 for ten classes, and the trained networks that ship with the course."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from .data import written_beside
from .plan import Plan, rebuild

WEIGHTS = Path(__file__).parent / "weights"
NETWORKS = ("imagenette", "imagenette-compressed", "digits")


def resnet18(width: int = 64, classes: int = 10) -> ResNet:
    """torchvision's ResNet-18, untrained, with `width` channels in the first stage.

    He et al., Deep Residual Learning for Image Recognition, CVPR 2016. The published network has
    width 64; the number of parameters falls with the square of the width.
    """
    if width < 1 or classes < 2:
        raise ValueError(f"width={width}, classes={classes}: use width >= 1 and classes >= 2")
    model = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=classes)
    if width != 64:
        model.inplanes = width
        model.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        model.bn1 = nn.BatchNorm2d(width)
        for stage, stride in enumerate((1, 2, 2, 2)):
            layer = model._make_layer(BasicBlock, width * 2**stage, 2, stride=stride)
            setattr(model, f"layer{stage + 1}", layer)
        model.fc = nn.Linear(8 * width, classes)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def load_resnet18(name: str = "imagenette") -> ResNet:
    """A trained network that ships with the course, in eval mode; nothing is downloaded.

    Parameters
    ----------
    name : "imagenette", "imagenette-compressed" (from that, with a tenth of its parameters), or
        "digits"

    Returns
    -------
    nn.Module
        float32. Takes RGB images (N, 3, H, W) normalised as for ImageNet, gives logits (N, 10).
        `evaluation_size` is the size in pixels at which its accuracy was recorded, `classes` the
        names of its classes, `plan` the plan of a compressed network.
    """
    if name not in NETWORKS:
        raise ValueError(f"name={name!r} is unknown; use one of {', '.join(NETWORKS)}")
    path = WEIGHTS / f"{name}.safetensors"
    if not path.exists():
        raise ValueError(f"name={name!r}: {path} is missing; install the course again")
    expected = json.loads(path.with_suffix(".json").read_text())["sha256"]
    if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
        raise ValueError(f"{path} is damaged; install the course again")
    state, about = read_weights(path)
    model = resnet18(about["width"], len(about["classes"]))
    model = load_state(model, state, path, about.get("plan"))
    model.evaluation_size, model.classes = about["evaluation_size"], about["classes"]
    return model.eval()


def save_weights(state: dict[str, Tensor], path: Path, about: dict[str, Any]) -> str:
    """Write tensors, floats as float16, with `about` as JSON in the header; all or nothing.

    Returns the SHA-256 of the file.
    """
    half = {
        key: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for key, value in state.items()
    }
    content = save(half, metadata={"about": json.dumps(about)})
    with written_beside(path) as beside:
        beside.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, floats as float32, and what was written about them."""
    try:
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}
            about = json.loads((file.metadata() or {})["about"])
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no weights file of this course ({error})") from error
    return {k: v.float() if v.dtype == torch.float16 else v for k, v in state.items()}, about


def load_state(
    model: nn.Module, state: dict[str, Tensor], path: Path, plan: str | None = None
) -> nn.Module:
    """Fill `model`, or a copy in the shape of `plan` (JSON), with `state`, and return it.

    A file for another network is a ValueError.
    """
    try:
        if plan is not None:
            return rebuild(model, Plan.from_json(plan), state)
        model.load_state_dict(state)
        return model
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[:2][-1].strip()
        raise ValueError(f"{path} holds another network than this one: {first}") from error
