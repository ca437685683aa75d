"""The ELBO of images beside its terms worked out one by one, and what a small model learns."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch'")

from torch.distributions import Normal, kl_divergence as torch_kl  # noqa: E402

from prefect_augment.errors import ParameterError  # noqa: E402
from prefect_augment.genmodels.base import FitContext, ImageData, ImageSpec  # noqa: E402
from prefect_augment.genmodels.images.vae import Vae, VaeNetwork, elbo_parts, importance_bounds  # noqa: E402
from prefect_augment.genmodels.latents import Prior  # noqa: E402
from prefect_augment.params import VaeModel  # noqa: E402

SIZE = 8
SPEC = ImageSpec(SIZE, 1, ("dark", "gray", "bright"), (120, 60, 20))


def network() -> VaeNetwork:
    torch.manual_seed(0)
    made = VaeNetwork(SIZE, 1, 3, n_latent=2, width=16)
    with torch.no_grad():
        made.prior.mean.normal_()
        made.prior.log_scale.normal_(std=0.3)
    return made


def squares() -> ImageData:
    """Plain squares whose brightness follows the class; a corner that does not is lit or not."""
    rng = np.random.default_rng(5)
    y = np.repeat(np.arange(3), SPEC.class_counts).astype(np.int64)
    images = np.array([50, 125, 200])[y][:, None, None, None] + rng.normal(0, 6, (200, *SPEC.shape))
    images[:, 4:, 4:] += 40 * rng.integers(0, 2, (200, 1, 1, 1))
    return ImageData(np.clip(images, 0, 255).astype(np.uint8), y)


@pytest.fixture(scope="module")
def model() -> Vae:
    made = Vae.build(VaeModel(n_latent=3, width=16, learning_rate=0.005, beta=1.0), SPEC)
    made.fit(squares(), FitContext(seed=1, steps=200, batch_size=32, threads=1))
    return made


def test_the_elbo_is_that_of_a_loop_over_records_and_pixels() -> None:
    vae, rng = network(), torch.Generator().manual_seed(1)
    images = torch.rand(4, 1, SIZE, SIZE, generator=rng)
    y, noise = torch.tensor([0, 2, 1, 2]), torch.randn(4, 2, generator=rng)
    with torch.no_grad():
        reconstruction, divergence = elbo_parts(vae, images, y, noise)
        mean, log_scale = vae.posterior(images)
        sigma = float(vae.scale())
        for i in range(4):
            z = mean[i] + log_scale[i].exp() * noise[i]
            back = vae.codec.decode(z[None])[0].flatten().tolist()
            nll = 0.0
            for x, mu in zip(images[i].flatten().tolist(), back, strict=True):
                nll += 0.5 * ((x - mu) / sigma) ** 2 + math.log(sigma * math.sqrt(2 * math.pi))
            assert float(reconstruction[i]) == pytest.approx(nll, rel=1e-4)
            centre, spread = vae.prior(y[i : i + 1])
            exact = torch_kl(
                Normal(mean[i], log_scale[i].exp()), Normal(centre[0], spread[0].exp())
            )
            assert float(divergence[i]) == pytest.approx(float(exact.sum()), rel=1e-4)


def test_one_importance_draw_is_the_elbo_with_the_drawn_divergence() -> None:
    vae, rng = network(), torch.Generator().manual_seed(1)
    images, noise = torch.rand(3, 1, SIZE, SIZE, generator=rng), torch.randn(1, 3, 2, generator=rng)
    with torch.no_grad():
        bounds = importance_bounds(vae, images, noise)
        mean, log_scale = vae.posterior(images)
        z = mean + log_scale.exp() * noise[0]
        own = Normal(mean, log_scale.exp()).log_prob(z).sum(dim=1)
        for k in range(3):
            centre, spread = vae.prior(torch.full((3,), k))
            prior = Normal(centre, spread.exp()).log_prob(z).sum(dim=1)
            torch.testing.assert_close(bounds[:, k], prior - own - vae.nll(images, z))


@pytest.mark.slow
def test_the_bound_grows_towards_the_integral_over_latent_vectors() -> None:
    """In two dimensions p(x | y) can be summed on a grid."""
    vae, rng = network(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        vae.log_scale.fill_(0.0)
        image = torch.rand(1, 1, SIZE, SIZE, generator=rng)
        axis = torch.linspace(-8, 8, 161)
        grid = torch.cartesian_prod(axis, axis)
        nll = vae.nll(image.expand(len(grid), -1, -1, -1), grid)
        exact = []
        for k in range(3):
            centre, spread = vae.prior(torch.tensor([k]))
            prior = Normal(centre, spread.exp()).log_prob(grid).sum(dim=1)
            exact.append(torch.logsumexp(prior - nll, dim=0) + 2 * torch.log(axis[1] - axis[0]))
        found = importance_bounds(vae, image, torch.randn(4000, 1, 2, generator=rng))
        torch.testing.assert_close(found[0], torch.stack(exact), atol=0.25, rtol=0)
        some = torch.randn(400, 1, 2, generator=rng)
        few = torch.stack([importance_bounds(vae, image, one[None])[0] for one in some])
        assert (few.mean(dim=0) <= found[0] + 0.02).all(), "one draw bounds from below in the mean"


@pytest.mark.slow
def test_the_class_is_told_by_its_likelihood_and_the_corner_by_a_latent_number(model: Vae) -> None:
    data = squares()
    scores = model.class_log_likelihoods(data.images)
    assert (scores.argmax(axis=1) == data.y).mean() > 0.95
    lit = (
        data.images[:, 5:, 5:].mean(axis=(1, 2, 3)) - data.images[:, :3, :3].mean(axis=(1, 2, 3))
        > 20
    )
    # Attribute arithmetic: the difference of two means turns the corner on.
    dark = data.images[data.y == 0]
    Z, lit = model.embed(dark), lit[data.y == 0]
    step = Z[lit].mean(axis=0) - Z[~lit].mean(axis=0)
    off, on = (
        model.decode_latents(Z[~lit] + added, np.zeros((~lit).sum(), np.int64)).astype(float)
        for added in (np.zeros(3, np.float32), step)
    )
    corner, rest = ((on - off)[:, rows, rows].mean() for rows in (slice(5, 8), slice(0, 3)))
    assert corner > 20
    assert abs(rest) < 10


@pytest.mark.slow
def test_strange_images_are_less_likely(model: Vae) -> None:
    data = squares()
    odd = data.images[:40].copy()
    odd[:, ::2] = 255 - odd[:, ::2]
    limit = np.quantile(model.anomaly_scores(data.images), 0.95)
    assert (model.anomaly_scores(odd) > limit).all()


def test_a_width_that_convolutions_cannot_have_is_refused() -> None:
    with pytest.raises(ParameterError, match="multiple of 16"):
        Vae.build(VaeModel(width=20), SPEC)


def test_the_priors_gradient_has_the_same_bits_on_several_threads() -> None:
    """Above 32,768 numbers PyTorch shares the work out; indexing then adds up in any order."""
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(0, 10, (256,), generator=rng)
    weights = torch.randn(256, 256, generator=rng)
    prior, before, seen = Prior(10, 256), torch.get_num_threads(), set()
    torch.set_num_threads(4)
    try:
        for _ in range(30):
            prior.zero_grad()
            mean, log_scale = prior(y)
            ((mean + log_scale) * weights).sum().backward()
            seen.add(b"".join(p.grad.numpy().tobytes() for p in prior.parameters()))
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 1
