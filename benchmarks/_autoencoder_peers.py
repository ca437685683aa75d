"""Autoencoder and VAE of the `pythae` package, at their own defaults, for `autoencoders.py`.

Runs in the peer's environment: `python _autoencoder_peers.py TASK.json`. The task names a folder with
`train.npy` and `test.npy` (float32 in [0, 1], shape (n, 1, 28, 28)), the model, its latent size, epochs
and batch size; `back.npy` (test images as they come back), `latents.npz` and `cost.json` are written
beside it. CPU seconds are those of the epochs after the first.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pythae.models import AE, VAE, AEConfig, VAEConfig
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback

PEERS = {"AE": (AE, AEConfig), "VAE": (VAE, VAEConfig)}


class Marks(TrainingCallback):
    """CPU seconds at the end of each epoch."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_epoch_end(self, training_config: Any, **kwargs: Any) -> None:
        self.at.append(time.process_time())


def main() -> None:
    """Train, bring back, write."""
    task = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(task["folder"])
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    train, test = (torch.from_numpy(np.load(folder / f"{n}.npy")) for n in ("train", "test"))
    model_class, config_class = PEERS[task["model"]]
    model = model_class(config_class(input_dim=(1, 28, 28), latent_dim=task["n_latent"]))
    marks = Marks()
    trainer = BaseTrainer(
        model=model,
        train_dataset=_Set(train),
        training_config=BaseTrainerConfig(
            output_dir=str(folder / "pythae"),
            num_epochs=task["epochs"],
            learning_rate=1e-3,
            per_device_train_batch_size=task["batch_size"],
            no_cuda=True,
        ),
        callbacks=[marks],
    )
    trainer.train()
    model = trainer.model.eval()
    with torch.inference_mode():
        means = {n: model.encoder(x).embedding for n, x in (("train", train), ("test", test))}
        back = model.decoder(means["test"]).reconstruction
    np.save(folder / "back.npy", back.numpy())
    np.savez(folder / "latents.npz", **{n: z.numpy() for n, z in means.items()})
    seconds = (marks.at[-1] - marks.at[0]) / (len(marks.at) - 1)
    cost = {
        "images_per_s": len(train) / seconds,
        "n_weights": sum(p.numel() for p in model.parameters()),
    }
    (folder / "cost.json").write_text(json.dumps(cost))


class _Set(torch.utils.data.Dataset[Any]):
    """Images as pythae asks for them."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> Any:
        from pythae.data.datasets import DatasetOutput

        return DatasetOutput(data=self.images[place])


if __name__ == "__main__":
    main()
