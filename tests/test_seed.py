"""The recorder of the popular recipe: a tiny run, one that is interrupted, the command."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import v2

from lowrank_course.data import balanced_subset, load_images
from lowrank_course.models import resnet18

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("seed", ROOT / "benchmarks" / "seed.py")
assert SPEC and SPEC.loader
seed = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(seed)

STEPS = [0, 1, 2, 4, 5, 8]  # of the looks: two epochs of 4 batches


@pytest.fixture(scope="module")
def digits():
    """100 training images, so 4 batches an epoch, and 20 others."""
    train, val = load_images("train", "digits"), load_images("val", "digits")
    return balanced_subset(train, 10), balanced_subset(val, 2)


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    """A tiny run: its record and its checkpoint."""
    path = tmp_path_factory.mktemp("seed") / "new" / "seed.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seed, "LOSS_EVERY", 3)
        made = seed.record(*digits, size=16, epochs=2, path=path)
    return made, torch.load(path, weights_only=True)


def equal(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


# ---- the recipe as it was written --------------------------------------------------------------


def test_images_are_resized_and_normalised_as_in_the_recipe(digits):
    steps = [v2.Resize((48, 48)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    written = v2.Compose([*steps, v2.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])
    loaded = list(seed.batches(digits[0], 48))
    assert [len(labels) for _, labels in loaded] == [32, 32, 32, 4]
    x = loaded[0][0]
    for i in (0, 31):
        picture = Image.fromarray(np.array(digits[0].pixels[digits[0].index[i]]))
        # Pillow and torch round whole numbers differently, by one at most.
        assert (written(picture) - x[i]).abs().max() < 2.1 / 255
    assert torch.equal(torch.cat([y for _, y in loaded]), torch.tensor(digits[0].labels))


def test_truncation_is_the_recipes_own():
    model = resnet18()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    seed.truncate(model)
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert changed == ["layer1.0.conv1.weight", "layer1.0.conv2.weight"]
    for key in changed:
        U, S, Vh = torch.linalg.svd(before[key].view(64, -1), full_matrices=False)
        low = torch.mm(U[:, :8], torch.diag(S[:8])).mm(Vh[:8]).view(64, 64, 3, 3)
        assert torch.allclose(model.state_dict()[key], low, atol=1e-6)


def test_it_trains_as_plain_sgd_does(digits, finished):
    """Two epochs written out: the same losses, batch by batch, and the same weights."""
    torch.manual_seed(0)
    model = resnet18().train()
    seed.truncate(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    losses = []
    for epoch in range(2):
        order = np.random.default_rng((0, epoch)).permutation(100)
        for inputs, labels in seed.batches(digits[0].select(order), 16):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    saved = finished[1]
    assert saved["log"]["losses"] == losses
    assert equal(saved["model"], model.state_dict())


# ---- the record --------------------------------------------------------------------------------


def test_record_of_a_tiny_run(finished):
    made, saved = finished
    first, *later = made["looks"]
    assert [look["step"] for look in made["looks"]] == STEPS
    for layer in seed.LAYERS:
        assert first[layer]["rank"] == 8 and first[layer]["energy"] == pytest.approx(1)
        assert all(look[layer]["rank"] == 64 for look in later)
        energies = [look[layer]["energy"] for look in made["looks"]]
        assert energies == sorted(energies, reverse=True) and 0.5 < energies[-1] < energies[1] < 1
    losses = saved["log"]["losses"]
    assert made["losses"] == [
        [pytest.approx(sum(losses[:3]) / 3)],
        [pytest.approx(sum(losses[4:7]) / 3)],
    ]
    uncut, cut = ("retrained", "retrained, recalibrated"), ("truncated again", "recalibrated")
    assert made["accuracy"].keys() == {*uncut, *cut}
    assert all(0 <= percent <= 100 for percent in made["accuracy"].values())
    assert made["data"] == {"train": 100, "val": 20, "source_pixels": 32}
    assert made["rank_tolerance"] == pytest.approx(6.9e-5, rel=0.01)
    assert all(seconds > 0 for seconds in made["seconds"].values())


def test_the_recipe_saves_nothing(finished):
    before, after = (finished[0]["costs"][key] for key in ("before", "after"))
    assert before["parameters"] == after["parameters"] == 11_181_642
    assert before["macs"] == after["macs"] and before["file_mb"] == after["file_mb"]
    assert before["latency_ms"].keys() == after["latency_ms"].keys() == {1, 32}


# ---- interrupted -------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [5, 7])  # batches of 8: the checkpoints are of 4 and of 6
def test_an_interrupted_run_goes_on_to_the_same_result(
    digits, finished, tmp_path, monkeypatch, after
):
    original, count = seed.batches, []

    def breaking(images, size):
        for batch in original(images, size):
            if len(count) == after:
                raise KeyboardInterrupt
            count.append(1)
            yield batch

    path = tmp_path / "seed.pt"
    monkeypatch.setattr(seed, "SAVE_EVERY", 6)
    monkeypatch.setattr(seed, "batches", breaking)
    with pytest.raises(KeyboardInterrupt):
        seed.retrain(digits[0], 16, 2, path)
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr(seed, "batches", original)
    model, log = seed.retrain(digits[0], 16, 2, path)
    whole = finished[1]
    assert {**log, "seconds": 0} == {**whole["log"], "seconds": 0} and log["seconds"] > 0
    assert equal(model.state_dict(), whole["model"])


# ---- the command -------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Two images a class instead of Imagenette, and a cache of its own."""
    monkeypatch.setenv("LOWRANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        seed.data,
        "load_images",
        lambda split, name: balanced_subset(load_images(split, "digits"), 2),
    )


def test_the_command_writes_the_record(small, tmp_path, capsys):
    path = tmp_path / "new" / "seed.json"
    seed.main(["--json", str(path), "--size", "16", "--epochs", "1"])
    made = json.loads(path.read_text())
    assert made["command"] == "python benchmarks/seed.py --size 16 --epochs 1"
    assert made["data"]["train"] == 40  # also what the course keeps aside
    assert made["reported"] == 64.79 and made["recipe"]["rank"] == 8
    assert json.loads(capsys.readouterr().out) == made["accuracy"]
    assert [file.name for file in path.parent.iterdir()] == ["seed.json"]
    checkpoints = (tmp_path / "cache" / "training").iterdir()
    assert [file.name for file in checkpoints] == ["seed-16px-1epochs.pt"]


def test_the_control_is_the_same_training_without_the_cut(small, tmp_path):
    path = tmp_path / "control.json"
    seed.main(["--control", "--json", str(path), "--size", "16", "--epochs", "1"])
    made = json.loads(path.read_text())
    assert made["command"] == "python benchmarks/seed.py --size 16 --epochs 1 --control"
    assert made["control"] and made["looks"][0]["layer1.0.conv1"]["rank"] == 64
    checkpoints = (tmp_path / "cache" / "training").iterdir()
    assert [file.name for file in checkpoints] == ["seed-control-16px-1epochs.pt"]


def test_a_bad_path_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(seed.data, "load_images", lambda *_: pytest.fail("the work had begun"))
    with pytest.raises(IsADirectoryError, match="name a file in it"):
        seed.main(["--json", str(tmp_path)])
