"""A network that cannot be compiled is trained as it is."""

import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch'")

from torch import Tensor, nn  # noqa: E402

from prefect_augment.nn.devices import Device, compiled, gpu_in_turn  # noqa: E402


# PyTorch uses what it has deprecated itself when its compiler is imported.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_network_that_cannot_be_compiled_works_as_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = nn.Linear(2, 1)
    x = torch.ones(3, 2)
    before = network(x)

    def loss() -> Tensor:
        raise RuntimeError("no compiler here")

    assert not compiled(network, loss, Device())
    assert "trained uncompiled: RuntimeError: no compiler here" in caplog.text
    torch.testing.assert_close(network(x), before)
    assert list(network.state_dict()) == ["weight", "bias"]


def test_parts_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [gpu_in_turn(i).idx for i in range(5)] == [0, 1, 2, 0, 1]  # type: ignore[attr-defined]
