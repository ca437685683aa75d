"""Contrastive divergence beside the expectation of its gradient over every state of the hidden units."""

import itertools

import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch'")

from torch import Tensor, nn  # noqa: E402

from prefect_augment.genmodels.images.autoencoder import Units, contrastive_divergence, free_energy  # noqa: E402

N_VISIBLE, N_HIDDEN = 3, 2


def machine() -> tuple[nn.Linear, nn.Parameter]:
    up = nn.Linear(N_VISIBLE, N_HIDDEN, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        up.weight.copy_(torch.randn(up.weight.shape, generator=generator))
        up.bias.copy_(torch.tensor([0.3, -0.5]))
    return up, nn.Parameter(torch.tensor([0.1, -0.4, 0.7], dtype=torch.float64))


def energy(v: Tensor, h: Tensor, up: nn.Linear, b: Tensor, visible: Units) -> Tensor:
    own = 0.5 * (v**2).sum() if visible == "real" else torch.zeros(())
    return own - b @ v - up.bias @ h - h @ up.weight @ v


def states() -> list[Tensor]:
    return [torch.tensor(s, dtype=torch.float64) for s in itertools.product([0, 1], repeat=2)]


@pytest.mark.parametrize("visible", ["binary", "real"])
def test_the_free_energy_sums_over_all_hidden_states(visible: Units) -> None:
    up, b = machine()
    for v in (torch.tensor([1.0, 0.0, 1.0]).double(), torch.tensor([0.2, 0.9, 0.4]).double()):
        sums = torch.stack([-energy(v, h, up, b, visible) for h in states()])
        found = free_energy(v[None], up, b, visible=visible, hidden="binary")
        torch.testing.assert_close(found[0], -torch.logsumexp(sums, dim=0))


def test_the_free_energy_of_real_hidden_units_is_their_integral() -> None:
    up, b = machine()
    v = torch.tensor([0.2, 0.9, 0.4]).double()
    axis = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    exponents = grid @ up.weight @ v + grid @ up.bias - 0.5 * (grid**2).sum(dim=1) + b @ v
    # The constant of two standard normals is left out.
    expected = -(torch.logsumexp(exponents, dim=0) + 2 * torch.log(axis[1] - axis[0]))
    found = free_energy(v[None], up, b, visible="binary", hidden="real")[0]
    constant = -torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
    torch.testing.assert_close(found + constant, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("visible", ["binary", "real"])
def test_cd_has_the_gradient_of_all_hidden_states_in_the_mean(visible: Units) -> None:
    """Data and what comes back: p(h | v)·v less the same of the mean that h gives, weighted by p(h | v)."""
    up, b = machine()
    v = torch.tensor([1.0, 0.0, 0.6], dtype=torch.float64)
    with torch.no_grad():
        on = torch.sigmoid(up.weight @ v + up.bias)
        expected = {"W": torch.outer(on, v), "c": on.clone(), "b": v.clone()}
        for h in states():
            chance = torch.prod(torch.where(h == 1, on, 1 - on))
            back = up.weight.T @ h + b
            back = torch.sigmoid(back) if visible == "binary" else back
            again = torch.sigmoid(up.weight @ back + up.bias)
            expected["W"] -= chance * torch.outer(again, back)
            expected["c"] -= chance * again
            expected["b"] -= chance * back
    n = 200_000
    numbers = torch.rand(n, N_HIDDEN, generator=torch.Generator().manual_seed(1))
    loss = contrastive_divergence(v.expand(n, -1), up, b, numbers, visible=visible, hidden="binary")
    loss.backward()
    found = {"W": up.weight.grad, "c": up.bias.grad, "b": b.grad}
    for name, gradient in expected.items():
        grad = found[name]
        assert grad is not None
        torch.testing.assert_close(-grad, gradient, atol=6e-3, rtol=0)


def test_learning_brings_data_back_better() -> None:
    rng = torch.Generator().manual_seed(0)
    data = (torch.rand(400, 1, generator=rng) < 0.5).float().repeat(1, 8)  # all on or all off
    up, b = nn.Linear(8, 4), nn.Parameter(torch.zeros(8))
    nn.init.normal_(up.weight, std=0.01, generator=rng)
    optimizer = torch.optim.Adam([*up.parameters(), b], lr=0.05)
    for _ in range(150):
        numbers = torch.rand(400, 4, generator=rng)
        loss = contrastive_divergence(data, up, b, numbers, visible="binary", hidden="binary")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    back = torch.sigmoid(torch.sigmoid(up(data)) @ up.weight + b)
    assert float(((back - data) ** 2).mean().detach()) < 0.02
