"""The networks that ship: whole, checked, and as good as their records say."""

import inspect
import json
import os
import shutil

import pytest
import torch
import torchvision
from torch import nn

from lowrank_course import compress, models
from lowrank_course.data import balanced_subset, data_folder, load_images, make_loader
from lowrank_course.measure import count_parameters
from lowrank_course.models import load_resnet18, read_weights, resnet18, save_weights
from lowrank_course.plan import load_compressed, save_compressed
from lowrank_course.train import evaluate

SHIPPED = sorted(file.stem for file in models.WEIGHTS.glob("*.safetensors"))


def record(name):
    return json.loads((models.WEIGHTS / f"{name}.json").read_text())


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A folder of one's own in place of the package's weights, with the digits in it."""
    for file in ("digits.safetensors", "digits.json"):
        shutil.copy(models.WEIGHTS / file, tmp_path / file)
    monkeypatch.setattr(models, "WEIGHTS", tmp_path)
    return tmp_path


# ---- the architecture --------------------------------------------------------------------------


def test_width_64_is_torchvisions():
    ours, theirs = (
        {name: tuple(value.shape) for name, value in model.state_dict().items()}
        for model in (resnet18(), torchvision.models.resnet18(num_classes=10))
    )
    assert ours == theirs
    assert count_parameters(resnet18()) == 11_181_642  # 11.18 M, as everyone counts it


@pytest.mark.parametrize(("width", "classes"), [(1, 2), (16, 10), (24, 7), (64, 1000)])
def test_parameters_by_width(width, classes):
    w = width
    stem = 3 * 49 * w + 2 * w
    block = {c: 9 * c * c + 2 * c for c in (w, 2 * w, 4 * w, 8 * w)}  # 3 x 3 at equal width
    entry = {c: 9 * c // 2 * c + 2 * c + c // 2 * c + 2 * c for c in (2 * w, 4 * w, 8 * w)}
    expected = stem + 4 * block[w] + sum(3 * block[c] + entry[c] for c in entry)
    model = resnet18(width, classes)
    assert count_parameters(model) == expected + 8 * w * classes + classes
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, classes)


@pytest.mark.parametrize("wrong", [{"width": 0}, {"classes": 1}, {"width": -4}])
def test_impossible_sizes(wrong):
    with pytest.raises(ValueError, match="use width >= 1 and classes >= 2"):
        resnet18(**wrong)


# ---- what ships --------------------------------------------------------------------------------


def test_every_network_ships():
    assert set(SHIPPED) == set(models.NETWORKS)


def test_the_compressed_network_is_a_tenth_of_the_dense_one():
    small, dense = load_resnet18("imagenette-compressed"), load_resnet18("imagenette")
    assert count_parameters(small) < 0.103 * count_parameters(dense)
    assert small.classes == dense.classes and small.evaluation_size == dense.evaluation_size
    assert any(row.form != "dense" for row in small.plan)


def test_imagenette_is_the_default():
    assert inspect.signature(load_resnet18).parameters["name"].default == "imagenette"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_network(name):
    model = load_resnet18(name)
    assert not any(module.training for module in model.modules())
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in model.parameters())
    assert isinstance(model.evaluation_size, int) and len(set(model.classes)) == 10
    size = model.evaluation_size
    with torch.no_grad():
        logits = model(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 10) and torch.isfinite(logits).all()
    assert not torch.equal(logits[0], logits[1])
    # Each call gives a network of its own.
    model.bn1.bias.data.add_(1)
    assert not torch.equal(load_resnet18(name).bn1.bias, model.bn1.bias)


def test_digits_network_is_small():
    assert (models.WEIGHTS / "digits.safetensors").stat().st_size < 5e6


def test_digits_record_is_what_the_network_does():
    model, about = load_resnet18("digits"), record("digits")
    for split, recorded in about["accuracy"].items():
        images = load_images(split, "digits")
        assert about["data"][split] == len(images)
        found = evaluate(model, make_loader(images, 128, model.evaluation_size))
        assert abs(found - recorded) <= 100 / len(images) + 0.01  # one image, and rounding
    assert about["accuracy"].keys() == {"holdout", "val"}
    assert about["data"]["train"] == len(load_images("train", "digits"))
    assert model.classes == images.classes
    assert len(about["log"]) == len(about["recipe"]["sizes"])
    assert about["recipe"]["width"] == model.conv1.out_channels


imagenette = pytest.mark.skipif(
    not (data_folder() / "imagenette2-160").is_dir(), reason="Imagenette is not here"
)


@pytest.mark.slow
@imagenette
@pytest.mark.parametrize("name", ["imagenette", "imagenette-compressed"])
def test_imagenette_record_on_a_sample(name):
    """200 validation images: a standard error of 2.2 points at 90 %."""
    model = load_resnet18(name)
    images = load_images("val", "imagenette")
    assert images.classes == model.classes
    loader = make_loader(balanced_subset(images, 20), 50, model.evaluation_size)
    assert abs(evaluate(model, loader) - record(name)["accuracy"]["val"]) < 7


@pytest.mark.slow
@imagenette
@pytest.mark.skipif(os.environ.get("LOWRANK_PROFILE") != "full", reason="profile full only")
@pytest.mark.parametrize("name", ["imagenette", "imagenette-compressed"])
def test_imagenette_record_on_all(name):
    model = load_resnet18(name)
    loader = make_loader(load_images("val", "imagenette"), 128, model.evaluation_size)
    recorded = record(name)["accuracy"]["val"]
    assert abs(evaluate(model, loader) - recorded) < 0.1  # processors round differently


# ---- what is refused ---------------------------------------------------------------------------


def test_unknown_name():
    with pytest.raises(ValueError, match="name='resnet18' is unknown; use one of imagenette, "):
        load_resnet18("resnet18")


def test_known_name_that_is_not_there(weights):
    with pytest.raises(ValueError, match="name='imagenette': .* is missing; install the "):
        load_resnet18("imagenette")


@pytest.mark.parametrize("damage", ["one bit", "half", "empty"])
def test_damaged_file(weights, damage):
    path = weights / "digits.safetensors"
    load_resnet18("digits")  # the copy is good
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes({"one bit": data, "half": data[: len(data) // 2], "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"digits\.safetensors is damaged; install the course"):
        load_resnet18("digits")


@pytest.mark.parametrize("lie", [{"width": 8}, {"classes": ["a", "b"]}])
def test_file_of_another_network(weights, lie):
    about = {"width": 16, "classes": list("0123456789"), "evaluation_size": 32, **lie}
    digest = save_weights(resnet18(16).state_dict(), weights / "digits.safetensors", about)
    (weights / "digits.json").write_text(json.dumps({"sha256": digest}))
    with pytest.raises(ValueError, match=r"digits\.safetensors holds another network than this"):
        load_resnet18("digits")


def test_weights_survive_their_file(tmp_path):
    torch.manual_seed(0)
    model = resnet18(4)
    about = {"width": 4, "note": "ä"}
    path = tmp_path / "new" / "w.safetensors"
    save_weights(model.state_dict(), path, about)
    state, found = read_weights(path)
    assert found == about and state.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert state[key].dtype == value.dtype  # float32 again, counters are integers
        torch.testing.assert_close(state[key], value, rtol=1e-3, atol=1e-6)
    assert path.stat().st_size < 2.3 * count_parameters(model) + 30_000  # two bytes a number
    assert [file.name for file in path.parent.iterdir()] == ["w.safetensors"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(nn.Linear(2, 2).state_dict(), path, {})
    before = path.read_bytes()

    def fails(beside, content):
        beside.open("wb").write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", fails)
    with pytest.raises(OSError, match="cannot be written .*No space left"):
        save_weights(nn.Linear(3, 3).state_dict(), path, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def thin():
    """The digits' network in half of its parameters, by its weights alone."""
    return compress(load_resnet18("digits"), torch.zeros(1, 3, 32, 32), 0.5, "params")


def ship(thin, folder, **lies):
    """Write it in place of the digits' network."""
    about = {"width": 16, "classes": list("0123456789"), "evaluation_size": 32}
    about |= {"plan": thin.plan.to_json(), **lies}
    digest = save_weights(thin.state_dict(), folder / "digits.safetensors", about)
    (folder / "digits.json").write_text(json.dumps({"sha256": digest}))


def test_a_compressed_network_comes_back(weights, thin):
    ship(thin, weights)
    model = load_resnet18("digits")
    assert model.plan == thin.plan and (model.evaluation_size, len(model.classes)) == (32, 10)
    assert count_parameters(model) == count_parameters(thin) < 0.51 * count_parameters(resnet18(16))
    assert not any(module.training for module in model.modules())
    assert all(p.dtype == torch.float32 for p in model.parameters())
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), thin(x), rtol=0.02, atol=0.05)  # float16 in the file
    again = weights / "again.safetensors"
    save_compressed(model, again)
    assert load_compressed(again, resnet18(16)).plan == thin.plan
    path = weights / "digits.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="is damaged"):
        load_resnet18("digits")


@pytest.mark.parametrize("lie", ["no plan", "another rank", "another layer", "no json", "width"])
def test_a_compressed_file_that_lies(weights, thin, lie):
    first = next(row.name for row in thin.plan if row.rank)
    lies = {
        "no plan": {"plan": None},
        "another rank": {"plan": thin.plan.edit(first, "channel", 1).to_json()},
        "another layer": {"plan": thin.plan.to_json().replace("layer1", "layer9")},
        "no json": {"plan": "{"},
        "width": {"width": 8},
    }
    ship(thin, weights, **lies[lie])
    with pytest.raises(ValueError, match=r"digits\.safetensors holds another network than this"):
        load_resnet18("digits")


def test_other_files_are_told(tmp_path):
    path = tmp_path / "w.safetensors"
    for content in (b"", b"not weights" * 50):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no weights file of this course"):
            read_weights(path)
