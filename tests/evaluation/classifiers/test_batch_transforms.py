"""Batches mixed in pairs: partners by class, targets that follow the pixels, the same bytes by seed."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from prefect_augment.evaluation.classifiers.batch_transforms import mix_batch, soft_targets  # noqa: E402 - needs torch
from prefect_augment.evaluation.classifiers.convnet import balanced_softmax_loss  # noqa: E402 - needs torch

ALL = torch.ones(3, dtype=torch.bool)


def batch(n_k):
    """Images of one value each, which names the class; shape (n, 1, 16, 12)."""
    y = torch.repeat_interleave(torch.arange(3), torch.tensor(n_k))
    return y.float().view(-1, 1, 1, 1).expand(-1, 1, 16, 12) / 2, y


def mixed(x, y, seed=0, **options):
    rng = torch.Generator().manual_seed(seed)
    options = {"mixing": "cutmix", "prob": 1.0, **options}
    return mix_batch(x, y, soft_targets(y, ALL), rng, **options)


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_targets_are_what_the_image_is_made_of_and_sum_to_one(mixing):
    x, y = batch((300, 60, 6))
    images, targets = mixed(x, y, mixing=mixing)
    assert torch.allclose(targets.sum(dim=1), torch.ones(366))
    shown = (targets * torch.tensor([0.0, 0.5, 1.0])).sum(dim=1)
    assert torch.allclose(images.mean(dim=(1, 2, 3)), shown, atol=1e-5)
    assert torch.equal(x, batch((300, 60, 6))[0]), "the batch itself is left as it is"


@pytest.mark.parametrize(("mixing", "part"), [("mixup", 1 / 2), ("cutmix", 0.32)])
def test_partners_are_drawn_evenly_over_the_classes_of_the_batch(mixing, part):
    """So a rare class gains: it has 1 % of the records, and a third of the partners."""
    x, y = batch((1980, 0, 20))
    gained = mixed(x, y, mixing=mixing)[1].mean(dim=0)
    expected = (1 - part) * np.array([0.99, 0, 0.01]) + part * np.array([0.5, 0, 0.5])
    assert gained.numpy() == pytest.approx(expected, abs=0.02)


def test_the_seed_decides_and_the_share_is_kept():
    x, y = batch((300, 60, 6))
    first, again, other = mixed(x, y), mixed(x, y), mixed(x, y, seed=1)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    plain = soft_targets(y, ALL)
    half = (mixed(x, y, mixing="mixup", prob=0.5)[1] != plain).any(dim=1).float().mean()
    # A third to a half of the partners are of the record's own class, whose target stays.
    assert 0.25 < half < 0.45
    assert torch.equal(mixed(x, y, prob=0.0)[0], x)


def test_bytes_stay_bytes():
    x = (255 * batch((20, 20, 20))[0]).to(torch.uint8)
    images, targets = mixed(x, batch((20, 20, 20))[1], mixing="mixup")
    assert images.dtype == torch.uint8
    shown = (targets * torch.tensor([0.0, 127.0, 255.0])).sum(dim=1)
    assert torch.allclose(images[:, 0, 0, 0].float(), shown, atol=0.51)


def test_smoothed_labels_are_shared_by_the_other_classes_with_records():
    y = torch.tensor([0, 1, 3])
    seen = torch.tensor([True, True, False, True])
    found = soft_targets(y, seen, torch.tensor([0.4, 0.1, 0.0, 0.0]))
    expected = [[0.6, 0.2, 0.0, 0.2], [0.05, 0.9, 0.0, 0.05], [0.0, 0.0, 0.0, 1.0]]
    assert found.numpy() == pytest.approx(np.array(expected))


def test_balanced_softmax_of_shares_is_the_mean_of_its_losses():
    """A class without records has no share, and a log prior of minus infinity; worked by hand."""
    log_prior = torch.tensor([0.8, 0.2, 0.0]).log()
    found = balanced_softmax_loss(torch.zeros(1, 3), torch.tensor([[0.25, 0.75, 0.0]]), log_prior)
    assert float(found) == pytest.approx(-0.25 * np.log(0.8) - 0.75 * np.log(0.2))
