"""Checks of records and requests that every model makes."""

from prefect_augment.array_types import Float32, Int
from prefect_augment.errors import EmptyClassError, ParameterError


def check_not_empty(n_records: int) -> None:
    """Raise EmptyClassError where there is nothing to train on."""
    if n_records == 0:
        raise EmptyClassError(
            "there are 0 training records, so the model cannot be trained; give a larger source."
        )


def check_request(conditions: Int, seeds: Int, classes: tuple[str, ...]) -> None:
    """Check that every condition has a seed (ParameterError) and is a class (EmptyClassError)."""
    if conditions.shape != seeds.shape:
        raise ParameterError(
            f"{len(conditions)} conditions came with {len(seeds)} seeds; give one each."
        )
    check_classes(conditions, classes)


def check_classes(y: Int, classes: tuple[str, ...]) -> None:
    """Raise EmptyClassError where an index is none of the model's classes."""
    if y.size and not 0 <= y.min() <= y.max() < len(classes):
        raise EmptyClassError(
            f"conditions go from {y.min()} to {y.max()}, the model has "
            f"classes 0 to {len(classes) - 1}: {', '.join(classes)}."
        )


def check_latents(Z: Float32, y: Int, n_latent: int, classes: tuple[str, ...]) -> None:
    """Check the shape of latent vectors (ParameterError) and their classes (EmptyClassError)."""
    if Z.shape != (len(y), n_latent):
        raise ParameterError(
            f"expected latent vectors of shape {(len(y), n_latent)}, one per class, found "
            f"{Z.shape}; take those of embed."
        )
    check_classes(y, classes)
