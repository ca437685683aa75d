"""Ranks: processes that train one network together, and what they tell one another in a step.

Every rank draws the whole batch with its random numbers, computes the loss of its own records, and
gets the sums of gradients and losses. So batch, random numbers and every decision are those of one
process, whatever the number of ranks. A DistributedSampler and DistributedDataParallel would draw
other batches, and do not know of gradients in several parts.

Losses are means over records. A statistic of the records computed at once (the penalties of the
contractive and the sparse autoencoder) is one of each rank's records. No network normalises by batch.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

# The process that started the ranks sees which one dies; a long validation must not look like it.
PATIENCE = timedelta(days=7)

# Whether this process is a rank. A group that the user's own program has opened is not meant.
_joined = False


class CutOffError(Exception):
    """Another rank no longer answers."""


def join(rank: int, n_ranks: int, store: str, device: str) -> None:
    """Make this process a rank; all meet at the file ``store``. Blocks until they are there."""
    global _joined
    backend = "gloo"
    if device == "cuda":
        torch.cuda.set_device(rank)
        backend = "cpu:gloo,cuda:nccl"
    with _talking():
        dist.init_process_group(
            backend,
            store=dist.FileStore(store, n_ranks),
            rank=rank,
            world_size=n_ranks,
            timeout=PATIENCE,
        )
    _joined = True


def own_part(batch: tuple[Tensor, ...], together: int = 1) -> tuple[tuple[Tensor, ...], float]:
    """The records of a batch that are this rank's, and their share of it.

    Records are dealt out in turn, ``together`` at once. So a loss that looks at packs of its
    records, or at a share of them, looks at the same ones as with the whole batch. A rank for which
    none are left gets the first ones with a share of 0: its gradients are of the same weights.
    """
    if not _joined:
        return batch, 1.0
    n, rank, n_ranks = len(batch[0]), dist.get_rank(), dist.get_world_size()
    last = max(1, n // together) - 1  # an incomplete pack stays with the one before
    dealt = (torch.arange(n) // together).clamp(max=last) % n_ranks
    rows = (dealt == rank).nonzero()[:, 0]
    share = len(rows) / n
    if not len(rows):
        rows = (dealt == 0).nonzero()[:, 0]
    return tuple(t[rows.to(t.device)] for t in batch), share


def summed(loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """Sum of the ranks' losses; gradients become their sums in place, all in one exchange."""
    if not _joined:
        return loss
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), loss.reshape(1)])
    with _talking():
        dist.all_reduce(flat)
    parts = flat.split([*(gradient.numel() for gradient in gradients), 1])
    for gradient, part in zip(gradients, parts, strict=False):
        gradient.copy_(part.view_as(gradient))
    return parts[-1][0].clone()


def of_first(make: Callable[[], T]) -> T:
    """What the first rank makes, on all of them: what decides about the next steps must be equal."""
    if not _joined:
        return make()
    result = [make() if dist.get_rank() == 0 else None]
    with _talking():
        dist.broadcast_object_list(result, device=torch.device("cpu"))
    return result[0]  # type: ignore[return-value]


@contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as exc:
        raise CutOffError(str(exc)) from exc
