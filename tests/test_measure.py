"""Counts against formulas, timings against models whose time is known."""

import copy
import dataclasses
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torchvision.models import VisionTransformer, resnet18

from lowrank_course.measure import (
    compare_latency,
    count_macs,
    count_parameters,
    file_mb,
    latency_ms,
    layer_shapes,
    measure,
)

IMAGES = torch.randn(2, 3, 16, 16)


class Recorder(nn.Module):
    """Takes `seconds` a call and notes how it was called."""

    def __init__(self, seconds=0.0, calls=None, name="recorder"):
        super().__init__()
        self.dropout = nn.Dropout()
        self.seconds, self.name, self.calls = seconds, name, [] if calls is None else calls

    def forward(self, x):
        self.calls.append((self.name, x, torch.get_num_threads(), self.dropout.training))
        self.inference = torch.is_inference_mode_enabled()
        time.sleep(self.seconds)
        return x


def small_model():
    """A network in a mixed mode: training, but with one frozen batch norm, and a hook."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)
    )
    model(IMAGES)
    model.train()[1].eval()
    model[0].register_forward_hook(lambda *_: None)
    return model


def snapshot(model):
    """Mode and number of hooks of every module, and the numbers it holds."""
    modules = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()
    ]
    return modules, copy.deepcopy(model.state_dict())


@given(
    channels=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    batch=st.integers(1, 3),
)
def test_macs_of_convolutions_and_linear_layers(channels, kernel, stride, batch):
    size, expected, parts = (13, 11), 0, []
    for inputs, outputs in zip(channels, channels[1:], strict=False):
        parts += [nn.Conv2d(inputs, outputs, kernel, stride, padding=1), nn.ReLU()]
        size = tuple((n + 2 - k) // stride + 1 for n, k in zip(size, kernel, strict=True))
        expected += outputs * inputs * kernel[0] * kernel[1] * size[0] * size[1]
    features = channels[-1] * size[0] * size[1]
    model = nn.Sequential(*parts, nn.Flatten(), nn.Linear(features, 5))
    assert count_macs(model, torch.randn(batch, channels[0], 13, 11)) == expected + 5 * features


def test_macs_of_grouped_layers_and_of_a_resnet():
    assert count_macs(nn.Conv2d(6, 4, 3, groups=2), torch.randn(1, 6, 5, 5)) == 9 * 4 * 3 * 9
    model, example = resnet18(num_classes=10), torch.randn(1, 3, 64, 64)
    expected = 0
    layers = dict(model.named_modules())
    for name, calls in layer_shapes(model, example).items():
        [(_, output)] = calls
        expected += layers[name].weight.numel() * torch.Size(output[2:]).numel()
    assert count_macs(model, example) == expected


def test_fused_attention_hides_no_layers():
    model = VisionTransformer(16, 8, 1, 2, 8, 12, num_classes=3).eval().requires_grad_(False)
    shapes = layer_shapes(model, IMAGES)
    assert shapes["encoder.layers.encoder_layer_0.mlp.0"] == [((1, 5, 8), (1, 5, 12))]
    attention = 5 * 8 * 8 * 4  # queries, keys, values and the projection behind
    mlp = 2 * 5 * 8 * 12
    assert count_macs(model, IMAGES) >= 4 * 8 * 3 * 64 + attention + mlp + 8 * 3
    assert torch.backends.mha.get_fastpath_enabled()


def test_parameters_count_once_and_without_statistics():
    shared = nn.Linear(4, 4)
    shared.weight.requires_grad_(False)
    model = nn.Sequential(shared, shared, nn.BatchNorm1d(4))
    assert count_parameters(model) == 4 * 4 + 4 + 4 + 4


def test_layer_shapes_has_one_entry_a_call():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.idle = nn.Conv2d(3, 3, 3, stride=2), nn.Linear(2, 2)

        def forward(self, x):
            return self.conv(input=self.conv(x))

    assert layer_shapes(Net(), IMAGES) == {
        "conv": [((1, 3, 16, 16), (1, 3, 7, 7)), ((1, 3, 7, 7), (1, 3, 3, 3))],
        "idle": [],
    }


@pytest.mark.parametrize("function", [count_macs, layer_shapes])
@pytest.mark.parametrize(
    ("example", "message"),
    [
        (IMAGES[0], r"example has shape \(3, 16, 16\) .* give a float tensor \(N, C, H, W\)"),
        (IMAGES.byte(), "dtype torch.uint8: give a float tensor"),
        (IMAGES[:0], r"example has shape \(0, 3, 16, 16\)"),
        ([1, 2], "example is a list: give a tensor"),
        (IMAGES[:, :1], r"shape \(2, 1, 16, 16\) does not fit the model: .*to have 3 channels"),
        (IMAGES[..., :9], r"shape \(2, 3, 16, 9\) does not fit the model"),
        (IMAGES.double(), r"shape \(2, 3, 16, 16\) does not fit the model: .*[dD]ouble"),
    ],
)
def test_wrong_examples(function, example, message):
    model = small_model()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message) as caught:
        function(model, example)
    assert "\n" not in str(caught.value)
    torch.testing.assert_close(snapshot(model), before)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    "function", [count_macs, layer_shapes, lambda model, x: latency_ms(model, x, 2, runs=1)]
)
def test_the_model_is_left_as_it_was(function):
    model = small_model()
    before = snapshot(model)
    function(model, IMAGES)
    torch.testing.assert_close(snapshot(model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_file_size_is_that_of_the_file(tmp_path, dtype):
    model = nn.Sequential(nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    expected = (tmp_path / "model.safetensors").stat().st_size / 1e6
    assert file_mb(model.to(dtype).to(memory_format=torch.channels_last)) == expected


def test_file_size_counts_shared_weights_once():
    model = nn.Sequential(nn.Linear(50, 50, bias=False), nn.Linear(50, 50, bias=False))
    apart = file_mb(model)
    model[1].weight = model[0].weight
    assert apart - file_mb(model) == pytest.approx(50 * 50 * 4 / 1e6, rel=0.02)


@pytest.mark.parametrize("outside", [1, 2])
def test_latency_runs_with_these_threads_in_eval_and_inference_mode(outside):
    threads = torch.get_num_threads()
    model = Recorder().train()
    try:
        torch.set_num_threads(outside)
        assert latency_ms(model, IMAGES, 5, threads=3 - outside, runs=1) >= 0
        assert torch.get_num_threads() == outside
    finally:
        torch.set_num_threads(threads)
    timed = [call for call in model.calls if call[1].shape[0] == 5]
    assert len(timed) >= 2  # a warm-up, and the run
    assert model.inference
    assert all(torch.equal(x, IMAGES[[0, 1, 0, 1, 0]]) for _, x, _, _ in timed)
    assert all(used == 3 - outside and not training for _, _, used, training in timed)
    assert model.training and model.dropout.training


def test_threads_and_mode_come_back_after_an_error():
    class Tired(Recorder):
        def forward(self, x):
            if len(self.calls) > 1:
                raise RuntimeError("too tired")
            return super().forward(x)

    before, model = torch.get_num_threads(), Tired()
    with pytest.raises(RuntimeError, match="too tired"):
        latency_ms(model, IMAGES, 4, threads=before + 1)
    assert torch.get_num_threads() == before and model.dropout.training


def test_latency_keeps_the_memory_format():
    model = Recorder()
    latency_ms(model, IMAGES.to(memory_format=torch.channels_last), 3, runs=1)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for _, x, _, _ in model.calls)


def test_latency_is_a_median_in_milliseconds():
    class Hiccup(Recorder):
        def forward(self, x):
            self.seconds = 0.3 if len(self.calls) in (4, 5) else 0.03
            return super().forward(x)

    assert 30 <= latency_ms(Hiccup(), IMAGES, 1, runs=5) < 150


def test_models_are_timed_in_turns():
    calls = []
    models = {name: Recorder(t, calls, name) for name, t in (("fast", 0.03), ("slow", 0.06))}
    times = compare_latency(models, IMAGES, 1, runs=4)
    assert list(times) == ["fast", "slow"]
    assert times["fast"] < times["slow"]
    # One call of each checks that the example fits, three say how many make a block.
    order = [call[0] for call in calls[2 + 2 * 3 :]]
    rounds = ["fast", "slow"], ["slow", "fast"]
    turns = [*rounds[0], *rounds[1], *rounds[0], *rounds[1]]
    assert order[::3] == order[1::3] == order[2::3] == turns  # two to warm up, one that counts


@pytest.mark.parametrize("name", ["batch_size", "threads", "runs"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_bad_settings(name, value):
    settings = {"batch_size": 1, "threads": 1, "runs": 1, name: value}
    with pytest.raises(ValueError, match=f"{name}={value}: give a whole number, at least 1"):
        latency_ms(nn.Conv2d(3, 4, 3), IMAGES, **settings)


def test_measure_gathers_everything():
    model = small_model()
    found = measure(model, IMAGES)
    latencies = found.latency_ms
    assert set(latencies) == {1, 32} and min(latencies.values()) > 0
    assert dataclasses.asdict(found) == {
        "parameters": count_parameters(model),
        "macs": count_macs(model, IMAGES),
        "latency_ms": latencies,
        "file_mb": file_mb(model),
    }
