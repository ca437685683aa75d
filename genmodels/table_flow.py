"""Flow matching for tables: choices first, one given the others, then scores along straight lines.

:class:`.table_mixed.MixedSpace` makes of a record codes ``c`` (categories, atoms, nulls) and normal
scores ``x``; p(c, x | y) = p(c | y) p(x | c, y), one network each:

- ``choices`` are learnt masked, as a discrete flow: of a record some codes are hidden, and the
  network gives the posterior of each hidden one from those that are seen, by cross-entropy
  (Hoogeboom et al. 2022, "Autoregressive Diffusion Models", equation 5; Campbell et al. 2024,
  "Generative Flows on Discrete State-Spaces", section 3). They are drawn one after the other, each
  from its posterior, so that what goes together stays together.
- ``scores`` are carried from noise to the record's along straight lines by the mean velocity
  E[x1 - x0 | x_t, t, c, y] (Lipman et al. 2023, equation 23 with sigma_min = 0), the codes given
  as they are: whether a value is null, zero or any other is known before it moves.

Classes are drawn with p ∝ n_k**q and one network serves all, so that a rare class borrows from the
others what they have in common. Training goes on for so many passes over the records at most, is
judged on a tenth of them held back, and ends when that no longer gains or records come back that lie
nearer to those trained on than the ones held back do.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefect_augment.genmodels.flow_conditions import read_given
from prefect_augment.genmodels.table_flow_network import FlowNetwork, carried, draw_choices
from prefect_augment.genmodels.table_flow_training import FlowPhase
from prefect_augment.genmodels.table_mixed import MixedSpace
from prefect_augment.genmodels.table_network import RecordNumbers, TableNetwork
from prefect_augment.genmodels.table_training import Encoded
from prefect_augment.params import FlowModel

__all__ = ["TableFlow"]


class TableFlow(TableNetwork[FlowModel, FlowNetwork]):
    """One pair of networks for all classes; see the module.

    Parameters
    ----------
    params : FlowModel
        The wish.
    spec : TableSpec
        Columns and classes.
    """

    params_class = FlowModel

    def new_network(self, space: MixedSpace) -> FlowNetwork:
        """Return both networks."""
        return FlowNetwork(
            space.n_codes,
            space.n_scores,
            self.spec.n_classes,
            width=self.params.width,
            depth=self.params.depth,
        )

    def new_phase(
        self, network: FlowNetwork, records: Encoded, space: MixedSpace, batch_size: int
    ) -> FlowPhase:
        """Train both at once: they share no weight."""
        return FlowPhase(
            network, records, self.params, batch_size=batch_size, n_classes=self.spec.n_classes
        )

    def sample_given(
        self, conditions: NDArray[np.int64], *, seeds: NDArray[np.int64], given: Mapping[int, float]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Draw records with given values, as :class:`.SamplesGiven` has it.

        Raises
        ------
        ParameterError
            If no fit record has a given value.
        """
        wish = read_given(self.space, given)
        return wish.keep(self.sampled(conditions, seeds, partial(self.draw, given=wish.codes)))

    def draw(
        self,
        network: FlowNetwork,
        y: Tensor,
        numbers: RecordNumbers,
        given: Mapping[int, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw choices one given the others, then carry scores from noise.

        ``given`` are codes by choice that all records have.
        """
        scores = numbers.normals(network.n_scores)
        codes = draw_choices(network, y, numbers.uniforms(len(network.layout)), given)
        if network.n_scores:
            has_score = torch.from_numpy(self.space.has_score(codes.cpu().numpy())).to(y.device)
            known = network.seen(codes, y)
            scores = carried(network, known, scores, has_score, self.params.sampler_steps)
        return codes, scores
