"""What the benchmarks of images share: data, an oracle that saw real images alone, and its scores."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from prefect_augment.evaluation.quality.likeness import frechet_distance, likeness
from prefect_augment.nn.devices import choose_device

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "images"
NEAR_QUANTILE = 0.01  # of real images' distances: so many of them are "near copies" themselves


def read(name: str, mode: str = "L") -> tuple[np.ndarray, list[str]]:
    """Return the images of a file, uint8 of shape (n, h, w, channels), and their labels."""
    path = DATA / f"{name}.parquet"
    if not path.is_file():
        raise SystemExit(f"no data at {path}; this benchmark reads images beside the repository.")
    table = pq.read_table(path)
    images = [Image.open(io.BytesIO(r["bytes"])).convert(mode) for r in table["image"].to_pylist()]
    stacked = np.stack([np.array(i) for i in images])
    return (stacked[..., None] if mode == "L" else stacked), table["label"].to_pylist()


def coded(labels: list[str], classes: list[str]) -> np.ndarray:
    """Return labels as indices into the classes."""
    return np.array([classes.index(name) for name in labels], dtype=np.int64)


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds that the work took."""
    start = time.process_time()
    work()
    return time.process_time() - start


class Oracle(nn.Module):
    """A classifier trained on balanced real images; its features are the space of the comparison."""

    def __init__(self, n_classes: int, channels: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        n_in = channels
        for n_out, stride in ((48, 1), (48, 2), (96, 1), (96, 2), (96, 1)):
            conv = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
            layers += [conv, nn.BatchNorm2d(n_out), nn.ReLU()]
            n_in = n_out
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(96, n_classes)

    @classmethod
    def trained(cls, images: np.ndarray, y: np.ndarray, n_classes: int, n_steps: int) -> Oracle:
        """Train on shifted images."""
        torch.manual_seed(0)
        oracle = cls(n_classes, images.shape[3]).to(memory_format=torch.channels_last)
        device = choose_device("cpu", threads=1)
        optimizer = torch.optim.AdamW(oracle.parameters(), 3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=n_steps)
        x, target = as_tensor(images), torch.from_numpy(y)
        for k in range(n_steps):
            rows = torch.randint(0, len(x), (128,))
            batch = torch.roll(x[rows], (k % 5 - 2, k // 5 % 5 - 2), (2, 3)) if k % 2 else x[rows]
            with device.autocast():
                scores = oracle.head(oracle.features(batch))
            loss = F.cross_entropy(scores.float(), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return oracle.eval()

    @torch.inference_mode()
    def see(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return features and predicted classes."""
        found = [self.features(as_tensor(images[i : i + 500])) for i in range(0, len(images), 500)]
        features = torch.cat(found)
        return features.double().numpy(), self.head(features).argmax(1).numpy()


def as_tensor(images: np.ndarray) -> Tensor:
    """Return pixels as float32 in [-1, 1], channels first."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1


@dataclass(frozen=True)
class Reference:
    """Real images in the oracle's features: those trained on, and two halves that nobody saw.

    ``held_out`` is compared with; ``other`` stands for a perfect generator, and says how near to a
    training image real ones come.
    """

    train: tuple[np.ndarray, np.ndarray]  # features, classes
    held_out: tuple[np.ndarray, np.ndarray]
    other: tuple[np.ndarray, np.ndarray]
    tail: np.ndarray  # the classes that count as rare

    def scores(self, features: np.ndarray, y: np.ndarray, said: np.ndarray) -> dict[str, float]:
        """Return Fréchet distances, coverage, fidelity and near copies of images."""
        real, real_y = self.held_out
        of_tail, in_tail = np.isin(real_y, self.tail), np.isin(y, self.tail)
        per_class = [likeness(real[real_y == k], features[y == k]) for k in self.tail.tolist()]
        near = self.near_copies(features, y)
        return {
            "frechet": frechet_distance(features, real),
            "tail_frechet": frechet_distance(features[in_tail], real[of_tail]),
            "tail_density": float(np.mean([c.density for c in per_class])),
            "tail_coverage": float(np.mean([c.coverage for c in per_class])),
            "fidelity": float(np.mean(said == y)),
            "near_copies": float(near.mean()),
            "worst_near_copies": float(max(near[y == k].mean() for k in np.unique(y))),
        }

    def near_copies(self, features: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return which are nearer to a training image of their class than 1 % of real images are."""
        found = np.zeros(len(y), dtype=bool)
        for k in np.unique(y).tolist():
            own = self.train[0][self.train[1] == k]
            limit = np.quantile(nearest(self.other[0][self.other[1] == k], own), NEAR_QUANTILE)
            found[y == k] = nearest(features[y == k], own) < limit
        return found


def nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return each one's distance to the nearest of ``b``."""
    parts = [torch.cdist(torch.from_numpy(a[i : i + 500]), torch.from_numpy(b)).amin(1).numpy()
             for i in range(0, len(a), 500)]  # fmt: skip
    return np.concatenate(parts)


def printed(rows: list[dict[str, object]]) -> None:
    """Print rows as a table."""
    names = list(rows[0])
    print("  ".join(f"{name:>16}" for name in names))
    for row in rows:
        cells = [f"{v:16.4g}" if isinstance(v, float) else f"{v!s:>16}" for v in row.values()]
        print("  ".join(cells))
