"""The evaluator of images: pixels, a convolutional classifier, the run's own candidates.

All strategies are compared on validation alone, since folds take that many times as long and a model cannot be
trained anew within each. Only where the rarest compared class has fewer than ten validation records, and no model's
candidates are compared, are the plan's folds used. Needs torch and Pillow.
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from threading import RLock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.array_types import Array, Bool, Float, Float32, Images, Int
from prefect_augment.augmentation.image_policy import ImagePolicy
from prefect_augment.encoding.arrays import (
    TRAINED_ON,
    Labelled,
    Records,
    by_columns,
    recent,
    training_table,
)
from prefect_augment.encoding.images import encode_column
from prefect_augment.encoding.subsample import Sample, sample_rows
from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.classifiers.batch_transforms import ClassicRanges
from prefect_augment.evaluation.classifiers.convnet import (
    MakeNetwork,
    fit_image_classifier,
    own_network,
)
from prefect_augment.evaluation.classifiers.linear_probe import fit_probe
from prefect_augment.evaluation.classifiers.own_estimator import estimator_infos, make_network
from prefect_augment.evaluation.classifiers.patch_features import fit_patches
from prefect_augment.evaluation.quality.image_filter import ShiftSpace, image_measures
from prefect_augment.evaluation.quality.near_copies import Measures
from prefect_augment.experiment.evaluator import (
    Evaluator,
    StoredArray,
    Synthetic,
    compared_sample,
    score_folds,
)
from prefect_augment.experiment.training_set import DrawnSet, drawn_training_set
from prefect_augment.loading.encoder import FeatureEncoder, staged_encoder
from prefect_augment.nn.machine import classifier_size
from prefect_augment.params import Classic, Evaluation
from prefect_augment.params.keys import step_key
from prefect_augment.plan.estimate import HOLDOUT_SHARE
from prefect_augment.plan.weights import smoothing_by_class
from prefect_augment.schema import (
    BalancePlan,
    DatasetInfo,
    EncoderInfo,
    EstimatorInfo,
    Experiment,
    ImageInfo,
    Strategy,
)
from prefect_augment.shards.base import label_names
from prefect_augment.shards.staged import iter_shards, read_part, read_shards
from prefect_augment.split.ledger_io import split_clusters
from prefect_augment.storage import Stage, Store
from prefect_augment.storage.keys import hash_ids

logger = logging.getLogger(__name__)


ESTIMATOR = "convolutional"
# Presets of the written policy (augmentation.images.PRESETS) as the batched transform has them.
RANGES = {"safe": ClassicRanges()}
# Features of the images of the latest runs, by the digest of the pixels that the comparison has.
_features: OrderedDict[tuple[str, str, str, EncoderInfo], dict[bytes, Float32]]
_features = OrderedDict()
_features_lock = RLock()
MAX_RECENT = 2


def _change(classic: Classic, strategy: Strategy) -> Callable[[Images, Int], Images] | None:
    """Transform of images by the policy; None where the batched transform does the same."""
    if classic.image in RANGES and not classic.policy and not classic.plugin:
        return None
    return ImagePolicy.from_params(classic).stronger(strategy.classic_strength).always


def open_evaluator(store: Store, info: DatasetInfo, experiment: Experiment) -> "ImageEvaluator":
    """The evaluator of staged images."""
    if info.image is None:
        raise ParameterError(
            f"stage {info.key[:12]} has images without their size and format; ingest again."
        )
    plan = experiment.plan
    if plan.classifier_steps < 1:
        raise ParameterError("the plan has no classifier steps; plan again with this version.")
    image = info.image

    sample = compared_sample(experiment)

    def read() -> Records:
        return _read_parts(store, info, image, plan, TRAINED_ON, sample)[0]

    records = recent(store, info, plan, read, sample)
    return ImageEvaluator(experiment, info, records, store, image)


@dataclass(frozen=True)
class ImageEvaluator(Evaluator):
    """Squares of pixels, compared by a convolutional classifier or the user's networks."""

    store: Store
    image: ImageInfo

    @property
    def estimators(self) -> tuple[str, ...]:
        """One classifier, or the user's networks; the spread over seeds includes their own randomness."""
        return tuple(self._networks)

    @property
    def estimator_infos(self) -> dict[str, EstimatorInfo]:
        """Package, version and digest of each, by name."""
        if own := self.params.evaluation.own_estimators:
            return estimator_infos(Evaluation(estimators=[*own]))
        return {ESTIMATOR: EstimatorInfo(package="torch", version=version("torch"))}

    def try_estimators(self) -> None:
        """Make the user's networks once, and ask each about two images; compute the encoder's features.

        Features are not a strategy's own: the schedule would take their time for that of every setting.
        """
        if self.encoder is not None:
            self.features(self.records.X[:1])
        for make in self._networks.values():
            if make is not None:
                own_network(make, len(self.records.classes), self.records.X.shape[1:], seed=0)

    @property
    def _networks(self) -> dict[str, MakeNetwork | None]:
        """What makes each network, by its name; None for the built-in one."""
        networks: dict[str, MakeNetwork | None] = {}
        for own in self.params.evaluation.own_estimators:
            networks[own.title] = partial(make_network, own)
        return networks or {ESTIMATOR: None}

    def read(self, table: pa.Table) -> Records:
        """Staged records of another part."""
        records = _to_records(table, self.store, self.info, self.encode(table), self.plan, None)
        if (encoder := self.encoder) is not None:
            with _features_lock:
                rows = encoder.features(table.column(self.image.column))
                self._known.update(zip(_digests(records.X), rows, strict=True))
        return records

    def read_holdout(self, store: Store) -> tuple[Records, pa.Table]:
        """Pixels are made batch by batch; an encoder needs all files."""
        sample = compared_sample(self.experiment)
        sample = sample._replace(most=sample.most // HOLDOUT_SHARE)
        records, table = _read_parts(store, self.info, self.image, self.plan, ("holdout",), sample)
        if self.encoder is not None:
            self.read(_files_of(records, read_part(store, self.info, ["holdout"])))
        return records, table

    @property
    def encoder(self) -> FeatureEncoder | None:
        """The user's pretrained encoder, if there is one."""
        params = self.params.encoder
        return staged_encoder(params, self.store) if params.uri else None

    def features(self, X: Images) -> Float32:
        """Features of images, shape (n, n_features), each computed once.

        Those of records come from their files; those of other images from these pixels.
        """
        encoder = self.encoder
        assert encoder is not None
        with _features_lock:
            return _EncodesOnce(encoder, self._known).features(X)

    @property
    def _known(self) -> dict[bytes, Float32]:
        """The features so far, at first those of training and validation; under the lock."""
        encoder, info = self.encoder, self.info
        assert encoder is not None
        sample = [*compared_sample(self.experiment)] if self.is_sampled else []
        key = (self.store.uri, info.key, f"{info.digest}{sample}", encoder.info)
        if key not in _features:
            stage_key = step_key("features", self.params, inputs=[info.key, info.digest, *sample])
            stage = Stage(self.store, "features", stage_key)

            def make() -> Float32:
                table = _files_of(self.records, training_table(self.store, info)[0])
                logger.info("Computing features of %d images by %s.", len(table), encoder.info.name)
                return encoder.features(table.column(self.image.column))

            rows = StoredArray.of(stage, "features", make).load(self.store)
            _features[key] = dict(zip(_digests(self.records.X), rows, strict=True))
        _features.move_to_end(key)
        while len(_features) > MAX_RECENT:
            _features.popitem(last=False)
        return _features[key]

    def encode(self, table: pa.Table) -> Images:
        """Squares of the classifier's resolution."""
        return _encode(table, self.image)

    def folds(self, *, seed: int, has_candidates: bool) -> Int:
        """Validation alone, or the plan's folds where it is tiny and no model has seen training records."""
        return score_folds(
            self.records, n_folds=1 if has_candidates else self.plan.n_folds, seed=seed
        )

    def is_fixed(self, strategy: Strategy) -> bool:
        """A linear probe: a network's own weights and draws come from the seed."""
        return strategy.family == "probe"

    def predictions(
        self,
        strategy: Strategy,
        rows: Int,
        X: Array,
        *,
        synthetic: Synthetic | None,
        seed: int,
        step_share: float = 1.0,
    ) -> Iterator[tuple[str, Float]]:
        """Train the strategy's classifier on draws from its training set."""
        data = self.records
        drawn = drawn_training_set(strategy, data, rows, plan=self.plan, synthetic=synthetic)
        y = data.class_of_stratum(self.plan)[drawn.strata]
        if strategy.family == "probe":
            proba = self._by_probe(strategy, drawn, y, X)
        elif strategy.patches:
            proba = self._by_patches(strategy, drawn, y, X, seed=seed, share=step_share)
        else:
            yield from self._by_networks(strategy, drawn, y, X, seed=seed, share=step_share)
            return
        yield from ((name, proba) for name in self._networks)

    def _by_probe(self, strategy: Strategy, drawn: DrawnSet, y: Int, X: Array) -> Float:
        probe = fit_probe(
            self.features(drawn.X[drawn.rows]),
            y,
            C=strategy.C,
            weights=drawn.weights,
            n_classes=len(self.records.classes),
        )
        return probe.predict_proba(self.features(X).astype(np.float64))

    def _by_patches(
        self, strategy: Strategy, drawn: DrawnSet, y: Int, X: Array, *, seed: int, share: float
    ) -> Float:
        """By a share of the filters, which the seconds grow with."""
        fitted = fit_patches(
            drawn.X,
            y,
            rows=drawn.rows,
            n_classes=len(self.records.classes),
            seed=seed,
            weights=drawn.weights,
            n_filters=max(1, round(share * strategy.patches)),
            C=strategy.C,
            mirroring=strategy.mirroring,
            device=self.params.budget.device,
        )
        return fitted.predict_proba(X)

    def _by_networks(
        self, strategy: Strategy, drawn: DrawnSet, y: Int, X: Array, *, seed: int, share: float
    ) -> Iterator[tuple[str, Float]]:
        """By a share of the steps."""
        counts = np.bincount(y, minlength=len(self.records.classes)).astype(np.float64)
        smoothing = None
        if strategy.smoothing:
            smoothing = smoothing_by_class(counts, strategy.smoothing)
        ranges = RANGES.get(self.params.classic.image)
        for name, make in self._networks.items():
            estimator = fit_image_classifier(
                drawn.X,
                y,
                rows=drawn.rows,
                n_classes=len(self.records.classes),
                steps=max(1, round(share * self.plan.classifier_steps)),
                seed=seed,
                weights=drawn.weights,
                loss="balanced_softmax" if strategy.family == "loss" else "ce",
                # Half of the amount is half of the log prior.
                prior=np.where(counts > 0, counts**strategy.amount, 0.0),
                augment_prob=strategy.classic_prob,
                ranges=ranges and ranges.stronger(strategy.classic_strength),
                change=_change(self.params.classic, strategy) if strategy.classic_prob else None,
                mixing=strategy.mixing,
                mixing_prob=strategy.mixing_prob,
                smoothing=smoothing,
                deferred=strategy.deferred,
                synthetic=drawn.synthetic,
                real_only_finish=strategy.real_only_finish,
                width=self.plan.classifier_width,
                device=self.params.budget.device,
                make=make,
            )
            yield name, estimator.predict_proba(X)

    def plain_space(self, X: Array) -> ShiftSpace:
        """Pixels: features of a network trained on the training records would tell them from validation."""
        return ShiftSpace()

    def measures(self, training: Labelled, stratum_class: Int, seed: int) -> Measures:
        """Distances in features of the encoder, or of a classifier; labels by two others.

        Features of real records come from the same pixels as those of candidates: a space that told
        resolutions apart would find every candidate far.
        """
        return image_measures(
            training,
            stratum_class=stratum_class,
            steps=self.plan.classifier_steps,
            seed=seed,
            device=self.params.budget.device,
            encoder=_EncodesOnce(self.encoder, {}) if self.encoder else None,
        )


@dataclass(frozen=True)
class _EncodesOnce:
    """An encoder that computes the features of equal images once."""

    encoder: FeatureEncoder
    known: dict[bytes, Float32]

    @property
    def title(self) -> str:
        return self.encoder.title

    def features(self, X: Images, /) -> Float32:
        digests = _digests(X)
        missing = {d: i for i, d in enumerate(digests) if d not in self.known}
        rows = self.encoder.features(X[list(missing.values())])
        self.known.update(zip(missing, rows, strict=True))
        return np.stack([self.known[d] for d in digests]) if digests else rows


def _read_parts(
    store: Store,
    info: DatasetInfo,
    image: ImageInfo,
    plan: BalancePlan,
    parts: Sequence[str],
    sample: Sample,
) -> tuple[Records, pa.Table]:
    """Staged records, or a sample of them, sorted by key, and their columns but for the image.

    A batch of images is decoded at a time. A sample has each class of each part by its share.
    """
    shards = [s for part in parts for s in info.shards if s.split == part]
    names = ["aug_id", "content_key", info.label, info.group_column, *by_columns(plan)]
    columns = [*dict.fromkeys(name for name in names if name)]
    table = read_shards(store, shards, columns, like=info.shards)
    is_validation = np.repeat(
        np.array([s.split == "validation" for s in shards], dtype=bool),
        np.array([s.n_records for s in shards], dtype=np.int64),
    )
    order = pc.sort_indices(table, sort_keys=[("aug_id", "ascending")]).to_numpy().astype(np.int64)
    if sample.most and len(order) > sample.most:
        classes = np.unique(label_names(table[info.label]), return_inverse=True)[1]
        strata = 2 * classes[order] + is_validation[order]
        hashes = hash_ids(table["aug_id"])[order]
        order = order[sample_rows(strata, hashes, sample)]
    place = np.full(table.num_rows, -1)
    place[order] = np.arange(len(order))
    table, is_validation = table.take(order), is_validation[order]
    size, start = classifier_size(image.most_common_size), 0
    X = np.empty((len(order), size, size, image.n_channels), dtype=np.uint8)
    for batch in iter_shards(store, shards, [image.column]):
        rows = place[start : start + batch.num_rows]
        start += batch.num_rows
        X[rows[rows >= 0]] = _encode(batch.filter(rows >= 0), image)
    return _to_records(table, store, info, X, plan, is_validation), table


def _files_of(records: Records, table: pa.Table) -> pa.Table:
    """The rows of a table that are these records, in their order."""
    rows = pc.index_in(pa.array(records.keys), value_set=table["aug_id"].combine_chunks())
    return table.take(rows)


def _to_records(
    table: pa.Table,
    store: Store,
    info: DatasetInfo,
    X: Images,
    plan: BalancePlan,
    is_validation: Bool | None,
) -> Records:
    records = Records.of(table, X, info=info, plan=plan, is_validation=is_validation)
    if records.groups is not None:
        return records
    return replace(records, groups=_clusters(store, info, records.content.tolist()))


def _clusters(store: Store, info: DatasetInfo, content: list[str]) -> Int | None:
    """Near-duplicates stay together in folds and resamples; None where every image is alone."""
    names, codes = np.unique(
        np.array(split_clusters(store, info, content), dtype=object).astype(str),
        return_inverse=True,
    )
    return codes if len(names) < len(codes) else None


def _digests(X: Images) -> list[bytes]:
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in X]


def _encode(table: pa.Table, image: ImageInfo) -> Images:
    return encode_column(
        table.column(image.column),
        size=classifier_size(image.most_common_size),
        channels=image.n_channels,
        name=image.column,
    )
