"""Training: resumed, distilled, averaged, on two processes; what it refuses."""

import copy
import math
import os
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lowrank_course import train as package_train
from lowrank_course.data import balanced_subset, load_images, make_loader
from lowrank_course.models import resnet18
from lowrank_course.train import answers, evaluate, fine_tune, train

# `lowrank_course.train` is the function, which hides the module of the same name.
MODULE = sys.modules["lowrank_course.train"]


@pytest.fixture(scope="module")
def digits():
    """80 training images and 30 held-out ones."""
    train_images, holdout = load_images("train", "digits"), load_images("holdout", "digits")
    return balanced_subset(train_images, 8), balanced_subset(holdout, 3)


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """Two trainings are compared bit by bit: a stopwatch must not choose their precision."""
    monkeypatch.setattr(MODULE, "_bf16_pays", lambda *_: False)


def small_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def run(model, images, epochs=3, size=16, **options):
    return train(model, images, epochs, size, batch_size=16, progress=False, **options)


def equal(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


def without_seconds(history):
    return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in history]


class Interrupting(nn.Module):
    """A teacher that breaks off after some batches, as Ctrl-C would."""

    def __init__(self, batches=10**9):
        super().__init__()
        left = [batches]
        self.net, self.left = small_net(5), lambda: left  # a copy counts down the same number

    def forward(self, x):
        self.left()[0] -= 1
        if self.left()[0] < 0:
            raise KeyboardInterrupt
        return self.net(x)


# ---- what training does ------------------------------------------------------------------------


def test_history_and_learning(digits):
    images, holdout = digits
    model = small_net()
    sizes = [12] * 6 + [16] * 6
    history = run(model, images, 12, sizes, holdout=holdout, learning_rate=0.1)
    assert [epoch["epoch"] for epoch in history] == list(range(1, 13))
    assert [epoch["size"] for epoch in history] == sizes
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    assert history[-1]["accuracy"] == evaluate(model, make_loader(holdout, size=16))
    assert all(epoch["seconds"] > 0 for epoch in history)
    assert not any(module.training for module in model.modules())


def test_same_seed_same_weights(digits):
    states = []
    for seed in (0, 0, 1):
        model = small_net()
        run(model, digits[0], 1, seed=seed)
        states.append(model.state_dict())
    assert equal(states[0], states[1]) and not equal(states[0], states[2])


def test_model_is_left_with_the_average(digits, tmp_path):
    model = small_net()
    run(model, digits[0], 6, checkpoint=tmp_path / "c.pt")
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    assert all(
        torch.equal(saved["average"][f"module.{k}"], v) for k, v in model.state_dict().items()
    )
    assert not equal(saved["model"], model.state_dict())


def test_vectors_are_not_decayed():
    model = resnet18(2)
    model.layer1.requires_grad_(False)
    decayed, plain = MODULE._without_decay_on_vectors(model, 0.01)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    kinds = {p: (m, key) for m in model.modules() for key, p in m.named_parameters(recurse=False)}
    assert all(kinds[p][1] == "weight" for p in decayed["params"])
    assert {type(kinds[p][0]) for p in decayed["params"]} == {nn.Conv2d, nn.Linear}
    assert all(
        type(kinds[p][0]) is nn.BatchNorm2d or kinds[p][1] == "bias" for p in plain["params"]
    )
    trained = {p for p in model.parameters() if p.requires_grad}
    assert {*decayed["params"], *plain["params"]} == trained and len(trained) < len(kinds)


def test_frozen_parameters_stay(digits):
    model = small_net()
    model[3].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    run(model, digits[0], 1)
    assert torch.equal(model[3].weight, before["3.weight"])
    assert not torch.equal(model[0].weight, before["0.weight"])


@pytest.mark.parametrize("cutmix", [0.0, 1.0])
def test_cutmix_puts_a_box_of_another_image_in(digits, cutmix):
    grey = np.arange(0, 240, 5, dtype=np.uint8)  # 48 images of one colour each
    pixels = np.tile(grey[:, None, None, None], (1, 16, 16, 3))
    labels = np.arange(len(grey)) % 10
    images = replace(digits[0], pixels=pixels, index=np.arange(len(grey)), labels=labels)
    model, colours = small_net(), []

    def look(_, given):
        colours.extend(len(image[0].unique()) for image in given[0])

    model.register_forward_pre_hook(look)
    history = run(model, images, 1, cutmix=cutmix)
    assert math.isfinite(history[0]["loss"])
    assert (colours.count(2) > len(grey) / 2) == bool(cutmix)
    assert (colours.count(1) > len(grey) / 2) != bool(cutmix)


def test_distillation_draws_towards_the_teacher(digits):
    """The teacher knows nothing of digits, so labels alone do not lead to it."""
    images = digits[0]
    teacher = Interrupting()
    teacher.net[-1].weight.data.mul_(10)  # opinionated
    teacher.train()
    x, _ = next(iter(make_loader(images, 80, 16)))

    def divergence(model):
        with torch.no_grad():
            p, log_q = teacher.eval()(x), F.log_softmax(model.eval()(x) / 4, 1)
            return float(F.kl_div(log_q, F.softmax(p / 4, 1), reduction="batchmean"))

    alone, taught = small_net(), small_net()
    before = divergence(alone)
    weights = copy.deepcopy(teacher.state_dict())
    run(alone, images, 6, learning_rate=0.05)
    teacher.train()
    fine_tune(taught, teacher, images, 6, 16, learning_rate=0.05, batch_size=16, progress=False)
    assert teacher.training
    assert divergence(taught) < 0.5 * min(before, divergence(alone))
    assert equal(weights, teacher.state_dict())


def test_distillation_is_hintons_formula():
    logits = torch.randn(5, 10, generator=torch.Generator().manual_seed(0), requires_grad=True)
    scores = torch.randn(5, 10, generator=torch.Generator().manual_seed(1), requires_grad=True)
    found = MODULE.distillation_loss(logits, lambda _: scores, torch.zeros(5))
    p, q = (torch.softmax(values.detach().double() / 4, 1) for values in (scores, logits))
    assert found.item() == pytest.approx(16 * float((p * (p / q).log()).sum(1).mean()), rel=1e-5)
    found.backward()
    assert logits.grad is not None and scores.grad is None


def test_precision_is_measured_without_a_trace(monkeypatch, digits):
    monkeypatch.undo()
    model = small_net()
    before = copy.deepcopy(model.state_dict())
    assert MODULE._bf16_pays(model, 16, 8) is False, "too quick to be worth it"
    assert equal(before, model.state_dict())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("bf16", [False, True])
def test_the_measured_precision_is_used(monkeypatch, digits, bf16):
    seen = set()
    model = small_net()
    model[0].register_forward_hook(lambda *args: seen.add(args[2].dtype))
    monkeypatch.setattr(MODULE, "_bf16_pays", lambda *_: bf16)
    run(model, digits[0], 1)
    assert seen == {torch.bfloat16 if bf16 else torch.float32}
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("channels", [7, 8])
def test_narrow_strided_layers_are_not_channels_last(digits, channels):
    """oneDNN writes past its memory there: a segfault, or wrong gradients (oneDNN#6035)."""
    model = small_net()
    model[0], model[1] = nn.Conv2d(3, channels, 3, stride=2), nn.BatchNorm2d(channels)
    model[3] = nn.Conv2d(channels, 16, 1, stride=(1, 2))
    seen = []
    model[3].register_forward_hook(lambda m, args, _: seen.extend([args[0], m.weight]))
    train(model.to(memory_format=torch.channels_last), digits[0], 1, 16, progress=False)
    last = {x.is_contiguous(memory_format=torch.channels_last) for x in seen if x.shape[2] > 1}
    assert last == {channels == 8}


# ---- checkpoints -------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [7, 10])  # of 5 an epoch: within the second, and at its end
def test_resumes_with_the_same_weights(digits, tmp_path, monkeypatch, batches):
    images, holdout = digits
    whole, broken, resumed = small_net(), small_net(), small_net(9)
    expected = run(whole, images, teacher=Interrupting(), holdout=holdout)

    path = tmp_path / "folder" / "c.pt"
    with pytest.raises(KeyboardInterrupt):
        run(broken, images, teacher=Interrupting(batches), holdout=holdout, checkpoint=path)
    assert [file.name for file in path.parent.iterdir()] == ["c.pt"]
    monkeypatch.setattr(MODULE, "_bf16_pays", lambda *_: pytest.fail("measured a second time"))
    teacher = Interrupting()
    history = run(resumed, images, teacher=teacher, holdout=holdout, checkpoint=path)
    assert 10**9 - teacher.left()[0] == 15 - batches // 5 * 5  # only what was missing
    assert equal(whole.state_dict(), resumed.state_dict())
    assert without_seconds(history) == without_seconds(expected)

    # A training that had ended is not repeated.
    again = small_net(3)
    run(again, images, teacher=Interrupting(0), holdout=holdout, checkpoint=path)
    assert equal(whole.state_dict(), again.state_dict())


@pytest.fixture(scope="module")
def checkpoint(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "c.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "_bf16_pays", lambda *_: False)
        run(small_net(), digits[0], 1, checkpoint=path)
    return path.read_bytes()


def refuses(path, content, message, model, *args, **options):
    path.write_bytes(content)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message) as caught:
        run(model, *args, checkpoint=path, **options)
    assert path.name in str(caught.value) and "delete it to start again" in str(caught.value)
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert equal(before, model.state_dict())


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-100],
        lambda data: b"",
        lambda data: b"not a checkpoint",
        lambda data: b"\0" * 5000,
    ],
)
def test_damaged_checkpoint(checkpoint, digits, tmp_path, damage):
    message = "checkpoint=.* is damaged"
    refuses(tmp_path / "c.pt", damage(checkpoint), message, small_net(), digits[0], 1)


@pytest.mark.parametrize("content", [[1, 2], {"model": {}}])
def test_file_that_is_no_checkpoint(digits, tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    content = (tmp_path / "other.pt").read_bytes()
    message = "checkpoint=.* is damaged"
    refuses(tmp_path / "other.pt", content, message, small_net(), digits[0], 1)


def test_checkpoint_of_another_shape(checkpoint, digits, tmp_path):
    model = small_net()
    model[3], model[4] = nn.Conv2d(8, 12, 3, stride=2), nn.BatchNorm2d(12)
    model[9] = nn.Linear(12, 10)
    message = r"is of another training \(shapes\)"
    refuses(tmp_path / "c.pt", checkpoint, message, model, digits[0], 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 2}, "epochs=1, not 2"),
        ({"size": 12}, r"sizes=\[16\], not \[12\]"),
        ({"learning_rate": 0.1}, "learning_rate=0.06, not 0.1"),
        ({"weight_decay": 0.0}, "weight_decay=0.0005, not 0.0"),
        ({"seed": 1}, "seed=0, not 1"),
        ({"cutmix": 0.5}, "cutmix=0.0, not 0.5"),
        ({"teacher": Interrupting()}, "teacher=False, not True"),
    ],
)
def test_checkpoint_of_another_recipe(checkpoint, digits, tmp_path, options, message):
    options = {"epochs": 1, **options}
    refuses(tmp_path / "c.pt", checkpoint, message, small_net(), digits[0], **options)


# ---- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cutmix", [-0.1, 1.5])
def test_a_share_that_is_none(digits, cutmix):
    with pytest.raises(ValueError, match=rf"cutmix={cutmix} is not in \[0, 1\]; it is a share"):
        run(small_net(), digits[0], 1, cutmix=cutmix)


@pytest.mark.parametrize("epochs", [0, -1])
def test_no_epochs(digits, epochs):
    with pytest.raises(ValueError, match=f"epochs={epochs} trains nothing; use 1 or more"):
        run(small_net(), digits[0], epochs)


def test_sizes_that_do_not_match(digits):
    with pytest.raises(ValueError, match="size names 2 epochs, epochs=3; give one for each"):
        run(small_net(), digits[0], 3, [16, 16])


def test_one_image_is_too_few(digits):
    one = digits[0].select(torch.arange(1).numpy())
    with pytest.raises(ValueError, match="images holds 1 images"):
        run(small_net(), one)


def test_nan_weights(digits, tmp_path):
    model = small_net()
    model[3].bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="model holds NaN or infinite weights"):
        run(model, digits[0], checkpoint=tmp_path / "c.pt")
    assert not list(tmp_path.iterdir())


def test_nan_loss_names_the_learning_rate(digits, tmp_path):
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) in epoch 1; lower learning_rate="):
        run(small_net(), digits[0], learning_rate=1e25, checkpoint=tmp_path / "c.pt")
    assert not list(tmp_path.iterdir())  # no checkpoint of a network that is lost


# ---- evaluation --------------------------------------------------------------------------------


class Bright(nn.Module):
    """Says class 1 where the first pixel is above 0."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.norm, self.dropout = nn.BatchNorm2d(3), nn.Dropout(0.9)

    def forward(self, x):
        assert not self.norm.training and not self.dropout.training
        first = self.dropout(self.norm(x))[:, 0, 0, 0] * self.scale
        return torch.stack([torch.zeros_like(first), first], 1)


def test_answers_come_in_the_loaders_order():
    x = torch.zeros(7, 3, 4, 4)
    x[:, 0, 0, 0] = torch.tensor([1.0, -1, 1, -1, -1, 1, 1])
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 1])
    loader = [(x[:4], labels[:4]), (x[4:], labels[4:])]
    right = answers(Bright(), loader)
    assert right.dtype == torch.bool
    assert right.tolist() == [True, False, True, True, True, False, True]
    assert evaluate(Bright(), loader) == pytest.approx(100 * 5 / 7)


def test_evaluation_leaves_modes_and_statistics():
    model = Bright().train()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    evaluate(model, [(torch.randn(2, 3, 4, 4), torch.tensor([0, 1]))])
    assert (model.training, model.norm.training, model.dropout.training) == (True, False, True)
    assert equal(before, model.state_dict())
    with pytest.raises(RuntimeError):
        evaluate(model, [(torch.randn(2, 4, 4, 4), torch.tensor([0, 1]))])
    assert (model.training, model.norm.training) == (True, False)


def test_evaluation_of_nothing():
    with pytest.raises(ValueError, match="loader gives no batches"):
        evaluate(Bright(), [])


def test_train_is_the_packages_front_door():
    assert package_train is train


# ---- two processes -----------------------------------------------------------------------------

SCRIPT = """
import sys
import torch
from accelerate import PartialState
from lowrank_course.data import balanced_subset, load_images, make_loader
from lowrank_course.models import resnet18
from lowrank_course.train import evaluate, train

torch.manual_seed(0)
model = resnet18(8)
images = balanced_subset(load_images("train", "digits"), 50)
train(model, images, 8, 24, batch_size=int(sys.argv[2]), progress=False)
accuracy = evaluate(model, make_loader(load_images("val", "digits"), 90, 24))
state = PartialState()
about = {"state": model.state_dict(), "accuracy": accuracy, "processes": state.num_processes}
torch.save(about, f"{sys.argv[1]}-{state.process_index}.pt")
"""


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(tmp_path):
    """`accelerate launch` with gloo on the CPU: both ranks agree, and learn as one process does."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # `--num_processes 2 --cpu` alone needs MPI, and quietly starts one process without it.
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
    accelerate += ["--num_processes", "1", "--num_machines", "1"]
    accelerate += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    torchrun = ["--module", "torch.distributed.run", "--nproc_per_node", "2"]
    torchrun += ["--master_addr", "127.0.0.1", "--master_port", port]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    for command in (
        [*accelerate, *torchrun, str(script), str(tmp_path / "two"), "16"],  # 2 x 16 a step
        [*accelerate, str(script), str(tmp_path / "one"), "32"],
    ):
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]
    first, second, alone = (
        torch.load(tmp_path / name, weights_only=True)
        for name in ("two-0.pt", "two-1.pt", "one-0.pt")
    )
    assert [part["processes"] for part in (first, second, alone)] == [2, 2, 1]
    assert equal(first["state"], second["state"])
    assert not equal(first["state"], alone["state"])
    assert alone["accuracy"] > 70 and abs(first["accuracy"] - alone["accuracy"]) < 12
