"""Devices, averaged weights and network blocks."""

import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch'")

from torch import nn  # noqa: E402

from prefect_augment.errors import ParameterError  # noqa: E402
from prefect_augment.nn.devices import Device, available_cores, choose_device  # noqa: E402
from prefect_augment.nn.loop import Ema, decay  # noqa: E402
from prefect_augment.nn.networks import (  # noqa: E402
    SelfAttention,
    UNet,
    Upsample,
    depth_to_space,
    patch_size,
    space_to_depth,
)


def test_auto_takes_what_there_is() -> None:
    assert choose_device().name == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu").threads == available_cores() >= 1
    assert choose_device("cpu", threads=1, precision="float32") == Device("cpu", "float32", 1)


def test_unknown_and_missing_devices_are_refused() -> None:
    with pytest.raises(ParameterError, match="auto, cpu or cuda"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ParameterError, match="finds no GPU"):
            choose_device("cuda")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_autocast_computes_in_the_precision_asked_for(precision: str) -> None:
    device = choose_device("cpu", threads=1, precision=precision)
    with device.autocast():
        out = nn.Linear(4, 4)(torch.ones(2, 4))
    assert out.dtype == getattr(torch, precision)


def test_half_life_of_the_average_is_a_share_of_the_run() -> None:
    """After as many further steps as the half-life, about half of what was there is left."""
    step, left = 10_000, 1.0
    for k in range(step, step + 500):  # 5 % of 10,000
        left *= decay(k, fraction=0.05)
    assert left == pytest.approx(0.5, abs=0.02)
    assert decay(1) < 0.2, "the random start is forgotten at once"


def test_average_moves_towards_the_network_and_never_trains() -> None:
    network = nn.Linear(1, 1)
    average = Ema(network)
    with torch.no_grad():
        network.weight.fill_(10.0)
    for step in range(1, 4):
        average.update(step)
    assert not any(p.requires_grad for p in average.network.parameters())
    assert 5.0 < float(average.network.weight) <= 10.0


def test_squares_of_pixels_come_back_in_place() -> None:
    x = torch.arange(2 * 3 * 8 * 8.0).reshape(2, 3, 8, 8)
    deep = space_to_depth(x, 4)
    assert deep.shape == (2, 48, 2, 2)
    assert torch.equal(depth_to_space(deep, 4), x)


def test_each_pixel_grows_into_its_own_square() -> None:
    grow = Upsample(16, 16)
    x = torch.zeros(1, 16, 3, 3)
    x[0, :, 1, 2] = 1.0
    moved = (grow(x) - grow(torch.zeros_like(x))).detach().abs().sum(dim=1)[0]
    assert bool((moved[2:4, 4:6] > 0).all())
    moved[2:4, 4:6] = 0
    assert moved.sum().item() == 0.0


def test_attention_is_that_of_a_plain_loop() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(32)
    nn.init.normal_(layer.out.weight, std=0.2)
    x = torch.randn(2, 32, 3, 3)
    tokens = layer.norm(x).flatten(2).transpose(1, 2)
    q, k, v = layer.qkv(tokens).chunk(3, dim=-1)
    scores = torch.einsum("ntc,nsc->nts", q, k) / 32**0.5
    mixed = torch.einsum("nts,nsc->ntc", scores.softmax(-1), v)
    expected = x + layer.out(mixed).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (9, 3), (20, 3), (28, 1), (30, 1), (64, 3)])
def test_network_takes_any_size_and_starts_at_zero(size: int, channels: int) -> None:
    network = UNet(size=size, channels=channels, n_classes=3, width=16, n_augment=2)
    x = torch.randn(2, channels, size, size)
    out = network(x, torch.tensor([0.1, 0.9]), torch.tensor([0, 3]), torch.zeros(2, 2))
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    assert float(out.detach().abs().max()) == 0.0
    assert 4 <= size / patch_size(size) <= 16


def test_patch_keeps_the_first_level_at_16_squares_or_less() -> None:
    assert [patch_size(s) for s in (8, 16, 17, 28, 32, 33, 64, 128)] == [1, 1, 2, 2, 2, 4, 4, 8]
