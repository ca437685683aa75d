"""What a run will take, and the classifier's steps that fit a budget: arithmetic over counts."""

import math
from collections.abc import Sequence

from prefect_augment.nn.budget import calibrate
from prefect_augment.nn.machine import NARROW_BELOW, classifier_size, cpu_multiplies_bf16
from prefect_augment.params.keys import step_key
from prefect_augment.schema import DatasetInfo, Estimate, ImageInfo, Result
from prefect_augment.storage import Stage, Store

# Fitted by eye to single-thread fits on two shared cores, 2026-11-23: 300 to 100,000 records, 7 to 100
# columns, 2 to 8 classes, 0.04 to 0.7 seconds a fit; then to the processor time of whole runs.
_TREE_SECONDS = 0.025  # a gradient boosting fit of two classes, which grows a tree per iteration
_TREES_POWER = 0.7  # more classes grow one each, but smaller ones
_TREE_COLUMN_SECONDS = 1.7e-3
_TREE_VALUE_SECONDS = 5e-7
_LOGISTIC_VALUE_SECONDS = 7e-8  # a logistic regression fit, per value and class
_DRAW_FITS = 2.0  # fitting the model, drawing and filtering, in boosting fits
_START_SECONDS = 25.0  # imports, orchestration, ingest, report, publishing: of a small table
_VALUE_SECONDS = 1e-6  # the same, per value of the table
_START_BYTES = 450 * 1024**2  # of a process that has imported what a run imports
_COPIES = 48  # float64 copies of the matrix and similar arrays that a run holds at the same time
_REPORT_BYTES = 400_000
_N_FINALISTS = 2  # strategies that are run with all seeds, and on the hold-out


def estimate(
    *,
    n_records: int,  # hold-out included
    n_bytes: int,  # of the staged shards
    n_columns: int,  # learnt ones
    n_classes: int,
    n_added: int,  # classic and synthetic records planned
    n_strategies: int,  # each amount counted
    n_folds: int,  # times a strategy is trained for one score
    n_seeds: int,  # of the best two strategies and of the confirmation
    n_estimators: int,
    n_model_strategies: int,
    max_compared: int,  # records that strategies are compared on
) -> Estimate:
    """Rough needs of a run on a table, right within a factor of about three.

    Processor seconds, bytes written by publishing, peak memory in bytes. A fit of gradient boosting
    takes trees**0.7 x (0.025 + 0.0017 columns + 5e-7 values) seconds, with a tree per class where
    there are more than two; all else follows from counts.
    """
    n_trained = n_records + n_added
    share = min(1.0, max_compared / max(1, n_records))
    n_values = n_trained * n_columns
    n_compared = share * n_values
    n_trees = n_classes if n_classes > 2 else 1
    boosting = n_trees**_TREES_POWER * (
        _TREE_SECONDS + _TREE_COLUMN_SECONDS * n_columns + _TREE_VALUE_SECONDS * n_compared
    )
    logistic = _LOGISTIC_VALUE_SECONDS * n_compared * n_classes
    n_scored = (
        n_strategies * n_folds + _N_FINALISTS * (n_seeds - 1) * n_folds + _N_FINALISTS * n_seeds
    )
    n_draws = n_seeds * (n_folds + 1) + 1 if n_model_strategies else 0
    fits = n_scored * (boosting + (n_estimators - 1) * logistic) + n_draws * _DRAW_FITS * boosting
    record_bytes = n_bytes / max(1, n_records)
    return Estimate(
        seconds=round(_START_SECONDS + _VALUE_SECONDS * n_values + fits, 1),
        output_bytes=round(n_bytes + record_bytes * n_added) + _REPORT_BYTES,
        memory_bytes=round(_START_BYTES + share * 4 * n_bytes + _COPIES * 8 * n_compared),
        comparison_seconds=round(fits, 1),
    )


# Requests to an S3 server (moto) of whole runs on german_credit, 2026-11-24: of the flow augment, of comparing
# strategies, of a generative model. Files of 2 to 30 MB took up to three reads more per MiB and pass.
_WRITES, _READS = (83, 80, 69), (122, 126, 135)
_READS_PER_MIB = 3
_STAGED_BYTES, _PUBLISHED_BYTES = 32 << 20, 128 << 20  # of a shard


def whole_run(
    needs: Estimate, *, n_bytes: int, compares: bool, has_model: bool, training_seconds: float
) -> Estimate:
    """The needs of a whole run: with its training and its requests, without a comparison that is not made.

    ``n_bytes`` are those of the staged shards. Requests are right within a factor of about three.
    """
    parts = 1 + compares + (compares and has_model)
    shards = n_bytes / _STAGED_BYTES + needs.output_bytes / _PUBLISHED_BYTES
    comparison = needs.comparison_seconds if compares else 0.0
    return needs.model_copy(
        update={
            "seconds": round(
                needs.seconds - needs.comparison_seconds + comparison + training_seconds, 1
            ),
            "comparison_seconds": comparison,
            "writes": sum(_WRITES[:parts]) + round(shards),
            "reads": sum(_READS[:parts]) + round(parts * _READS_PER_MIB * n_bytes / 2**20),
        }
    )


CLASSIFIER_BATCH = 128  # images that the classifier draws per step
# 800 steps for 12,000 records, as in research/images.md section 9; 300 is where a classifier of a
# thousand records stops gaining.
_STEPS, _STEPS_RECORDS = 800, 12_000
_STEPS_RANGE = (300, 3_000)
# One thread with bf16, 2026-11: the wide network (2,000 records and more) and the narrow one.
_IMAGE_STEP_SECONDS = 0.022
_IMAGE_STEP_PIXEL_SECONDS = 8e-6  # per pixel of one image, for a batch of them
# Without bf16 (an AMD EPYC with AVX2 alone) a step took 2.2 to 4.8 times as long, at 28 to 64 pixels.
_FLOAT32_FACTOR = 3.0
_NARROW_SHARE = 0.45
_PREDICT_SHARE = 0.25  # of an image predicted, over an image trained on
_FILTER_FITS = 3  # classifiers that the filter trains
_AUDIT_FITS = 1  # three of a third of the steps
_DECODE_SECONDS = 4e-4  # per image: ingest reads it, models and classifiers decode it again
_DECODE_PIXEL_SECONDS = 3e-8  # the same, per pixel of the file: photographs take most of it
_COPY_PIXEL_SECONDS = 3e-8  # of a changed copy
# Per value: pixels as bytes, and what a batch takes; with a model also float32 copies of them.
_PIXEL_BYTES, _MODEL_PIXEL_BYTES = 3, 24

# Pixels of training and validation that a comparison holds; of the hold-out a quarter as many. 174,000 images of 32
# pixels in colour, or 43,000 of 64: a classifier takes at most 384,000 draws.
COMPARED_BYTES = 512 << 20
HOLDOUT_SHARE = 4


def most_compared(image: ImageInfo) -> int:
    """Return how many training and validation images a comparison holds at most; of the hold-out, a quarter."""
    side = classifier_size(image.most_common_size)
    return max(1, COMPARED_BYTES // (side * side * image.n_channels))


def classifier_steps(
    n_records: int, *, seconds: float = math.inf, step_seconds: float = 0.0
) -> int:
    """Steps of the image classifier, the same for all strategies.

    800 sqrt(n_records / 12,000), within 300 and 3,000, for so many training records. Fewer where
    ``seconds`` (per fit) at ``step_seconds`` each allow fewer, but at least 300.

        >>> classifier_steps(12_000), classifier_steps(900), classifier_steps(12_000, seconds=10, step_seconds=0.02)
        (800, 300, 500)
    """
    low, high = _STEPS_RANGE
    wanted = round(_STEPS * math.sqrt(n_records / _STEPS_RECORDS))
    if step_seconds > 0 and math.isfinite(seconds):
        wanted = min(wanted, int(seconds / step_seconds))
    return max(low, min(high, wanted))


def _step_seconds(side: int, *, narrow: bool, has_bf16: bool) -> float:
    seconds = _IMAGE_STEP_SECONDS + _IMAGE_STEP_PIXEL_SECONDS * side**2
    return seconds * (_NARROW_SHARE if narrow else 1) * (1 if has_bf16 else _FLOAT32_FACTOR)


class _Slowness(Result):
    """The receipt of how slow this machine is."""

    times: float


_TIMED_STEPS = 2  # in one call, so that making the network counts for little


def slowness(info: DatasetInfo, store: Store, *, device: str) -> float:
    """How many times as long as expected a step of the image classifier takes here: 1, 2, 4, ...

    Measured once for staged images, with the narrow network; a rerun finds the receipt. Powers of two, and at least
    1, so that the plan is the same on all machines that are about as fast as expected. Needs torch.
    """
    assert info.image is not None
    side, n_channels = classifier_size(info.image.most_common_size), info.image.n_channels
    key = step_key("slowness", inputs=[info.key, info.digest, device])

    def measure() -> _Slowness:
        # Imported here: it loads torch, which tables do without.
        from prefect_augment.evaluation.classifiers.convnet import time_steps

        taken = calibrate(lambda: time_steps(side, n_channels, steps=_TIMED_STEPS, device=device))
        expected = _step_seconds(side, narrow=True, has_bf16=cpu_multiplies_bf16())
        times = taken / _TIMED_STEPS / expected
        return _Slowness(times=max(1.0, 2.0 ** round(math.log2(times))))

    return Stage(store, "slowness", key).run(_Slowness, measure).times


def estimate_images(
    *,
    n_train: int,
    n_scored: int,  # records predicted per fit
    n_bytes: int,  # of the staged shards
    side: int,  # of the images as the classifier gets them
    n_pixels: int,  # of a file
    n_channels: int,
    n_added: int,  # classic and synthetic records planned
    n_strategies: int,
    folds: Sequence[int],  # times a strategy may be trained for one score, the best choice first
    n_seeds: int,
    has_model: bool,  # whether candidates are filtered
    seconds: float = math.inf,  # for the comparison; first the steps are reduced, then the folds
    has_bf16: bool = True,
    width: float = 1.0,  # times the classifier's channels: 1 or a half
    slow: float = 1.0,  # see slowness
) -> tuple[Estimate, int, int]:
    """Rough needs of comparing strategies and publishing images, the classifier's steps and the folds.

    The estimate is right within a factor of about three on one thread of a CPU. Folds are the first
    choice with which one seed fits into ``seconds``, or the last.
    """
    narrow = n_train < NARROW_BELOW or width < 1
    step = slow * _step_seconds(side, narrow=narrow, has_bf16=has_bf16)
    predict = _PREDICT_SHARE * step / CLASSIFIER_BATCH * n_scored
    # Always whole.
    filter_fits = _FILTER_FITS / (_NARROW_SHARE if width < 1 else 1) if has_model else 0
    for n_folds in folds:
        # All strategies once, the finalists and as is with further seeds, three strategies on the hold-out.
        first = n_strategies * n_folds + _N_FINALISTS + filter_fits + _AUDIT_FITS
        per_seed = (_N_FINALISTS + 1) * n_folds + _N_FINALISTS
        if first * (_STEPS_RANGE[0] * step + predict) <= seconds:
            break
    steps = classifier_steps(n_train, seconds=seconds / first - predict, step_seconds=step)
    comparison = (first + (n_seeds - 1) * per_seed) * (steps * step + predict)
    n_records = n_train + n_scored
    record_bytes = n_bytes / max(1, n_records)
    files = (_DECODE_SECONDS + _DECODE_PIXEL_SECONDS * n_pixels) * n_records
    files += _COPY_PIXEL_SECONDS * n_pixels * n_added
    n_values = n_records * side**2 * n_channels
    if has_model:
        held = 4 * n_bytes + _MODEL_PIXEL_BYTES * n_values
    else:
        held = _PIXEL_BYTES * min(n_values, COMPARED_BYTES)
    needs = Estimate(
        seconds=round(_START_SECONDS + files + comparison, 1),
        output_bytes=round(n_bytes + record_bytes * n_added) + _REPORT_BYTES,
        memory_bytes=2 * _START_BYTES + held,
        comparison_seconds=round(comparison, 1),
    )
    return needs, steps, n_folds
