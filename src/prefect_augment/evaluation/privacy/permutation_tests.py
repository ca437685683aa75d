"""Permutation tests of who is a member, several at once.

If a generator treats members and others alike, then who is a member is random given the synthetic records.
So the labels are permuted within strata, groups as a whole, and every statistic is compared with itself under
permuted labels. This holds whatever the data, and however much the statistics resemble one another.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prefect_augment.array_types import Bool, Float, Float32, Int

N_PERMUTATIONS = 1999
N_FOLDS = 5
RIDGE = 0.3  # of the number of records


@dataclass(frozen=True)
class Permuted:
    """Labels as they are, then permuted."""

    labels: Float32  # (n_permutations + 1, n) 1 for a member
    stratum: Int  # (n,)
    weights: Float  # (n_strata,) of the strata, by van Elteren
    folds: Int  # (n,) for classifiers; a group is in one

    def differences(self, scores: Float) -> Float:
        """Members' mean minus others', standardised, shape (n_permutations + 1, n_strata, n_scores).

        ``scores``, shape (n, n_scores), have the mean 0 in each stratum.
        """
        differences = np.empty((len(self.labels), len(self.weights), scores.shape[1]))
        for k in range(len(self.weights)):
            rows = np.flatnonzero(self.stratum == k)
            labels = self.labels[:, rows]
            n_members = labels.sum(axis=1)
            n_others = np.maximum(len(rows) - n_members, 1)
            sums = labels @ scores[rows].astype(np.float32)
            differences[:, k] = sums * (1 / np.maximum(n_members, 1) + 1 / n_others)[:, None]
        return differences

    def over_strata(self, differences: Float) -> Float:
        """Their mean over the strata, standardised, shape (n_permutations + 1, n_scores)."""
        return standardised(np.einsum("k,bks->bs", self.weights, differences))

    def share_difference(self, values: Float, counted: Bool) -> Float:
        """The same of shares among some records of all strata, shape (n_permutations + 1, 1)."""
        labels = self.labels[:, counted]
        n_members = labels.sum(axis=1)
        sums = labels @ values[counted].astype(np.float32)
        rest = values[counted].sum() - sums
        n_others = np.maximum(labels.shape[1] - n_members, 1)
        return standardised((sums / np.maximum(n_members, 1) - rest / n_others)[:, None])

    def classifier(self, scores: Float) -> tuple[Float, Float]:
        """A ridge classifier of all scores that tells members from others, out of fold.

        Returns the standardised correlation of labels and outputs, (n_permutations + 1, 1), and the outputs
        under the labels as they are, (n,): the larger, the more like a member.
        """
        targets = self.labels.T.copy()  # (n, n_permutations + 1)
        for k in range(len(self.weights)):
            targets[self.stratum == k] -= targets[self.stratum == k].mean(axis=0)
        features = (scores / np.maximum(scores.std(axis=0), 1e-9)).astype(np.float32)
        outputs = np.zeros_like(targets)
        for fold in range(N_FOLDS):
            out = self.folds == fold
            seen, unseen = features[~out], features[out]
            penalty = RIDGE * len(seen) * np.eye(features.shape[1], dtype=np.float32)
            coefficients = np.linalg.solve(seen.T @ seen + penalty, seen.T @ targets[~out])
            outputs[out] = unseen @ coefficients
        length = np.maximum(np.linalg.norm(outputs, axis=0), 1e-12)
        along = np.einsum("ib,ib->b", targets, outputs, dtype=np.float64)
        return standardised((along / length)[:, None]), outputs[:, 0].astype(np.float64)


def permute(
    is_member: Bool, groups: Int, stratum: Int, weights: Float, rng: np.random.Generator
) -> Permuted:
    """Labels under permutations of groups within strata; a group is in the stratum of its first record.

    Groups have one label, so those of members and of others have different codes.
    """
    _, first, block = np.unique(groups, return_index=True, return_inverse=True)
    of_block, block_stratum = is_member[first], stratum[first]
    labels = np.tile(of_block, (N_PERMUTATIONS + 1, 1))
    for k in np.unique(block_stratum):
        columns = np.flatnonzero(block_stratum == k)
        labels[1:, columns] = rng.permuted(labels[1:, columns], axis=1)
    folds = rng.permutation(len(first)) % N_FOLDS
    return Permuted(labels[:, block].astype(np.float32), stratum, weights, folds[block])


def standardised(statistics: Float) -> Float:
    """Statistics over their mean and deviation under the permutations; 0 where they never change."""
    deviation = statistics.std(axis=0)
    centred = statistics - statistics.mean(axis=0)
    return np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 1e-9)


def decide(tests: Mapping[str, Float], level: float) -> dict[str, float]:
    """Value from which on each test's statistics are found, so that all tests together keep the level.

    ``tests`` have statistics of shape (n_permutations + 1, n_statistics); a test finds what its largest one finds.
    ``level`` in (0, 1) is the chance that any test finds something where labels are random. The value is infinite
    where a test could find nothing. Westfall & Young 1993, "Resampling-Based Multiple Testing" (minP, single step).
    """
    largest = np.stack([z.max(axis=1) for z in tests.values()], axis=1)
    n = len(largest)
    # The share of permutations with as large a statistic: p-values, of each permutation too.
    order = np.sort(largest, axis=0)
    below = np.stack(
        [np.searchsorted(order[:, t], largest[:, t], side="left") for t in range(len(tests))],
        axis=1,
    )
    p_values = (n - below) / n
    smallest = np.sort(p_values.min(axis=1))
    # The largest p-value that at most a share ``level`` of permutations reach.
    limit = smallest[int(level * n)]
    allowed = p_values < limit
    return {
        name: float(largest[allowed[:, t], t].min(initial=np.inf)) for t, name in enumerate(tests)
    }
