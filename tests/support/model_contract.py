"""What every model promises, of tables and of images: a module inherits it, with fixtures ``kind`` and ``model``."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from support.latent_models import assert_embeds_alone, encoding

from prefect_augment.errors import AugmentError
from prefect_augment.genmodels.base import GenerativeModel, ScoresClasses
from prefect_augment.params import Budget
from prefect_augment.registry import load_model_class

CONDITIONS = np.array([2, 0, 0, 1, 2, 1] * 20, dtype=np.int64)


def seeds(n: int, start: int = -3) -> NDArray[np.int64]:
    return np.arange(start, start + n, dtype=np.int64) * 7_919


def as_bytes(arrays: Mapping[str, NDArray[Any]]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


class ModelContract:
    modality: ClassVar[Any]
    spec: ClassVar[Any]  # of three classes
    small: ClassVar[Mapping[str, tuple[Any, Budget]]]  # params and effort by kind
    X: ClassVar[NDArray[Any]]  # the records that `model` was fitted to
    y: ClassVar[NDArray[np.int64]]
    foreign: ClassVar[tuple[NDArray[Any], str]]  # records of another form, and how they are refused

    def fitted(self, kind: str) -> GenerativeModel:
        """A model fitted once more."""
        raise NotImplementedError

    def fit_nothing(self, kind: str) -> None:
        """Fit to no records."""
        raise NotImplementedError

    def unfitted(self, kind: str) -> Any:
        return load_model_class(kind, modality=self.modality).build(self.small[kind][0], self.spec)

    def loaded(self, kind: str, model: GenerativeModel) -> Any:
        config, arrays = model.state()
        assert all(isinstance(a, np.ndarray) and a.dtype != object for a in arrays.values())
        return load_model_class(kind, modality=self.modality).from_state(
            json.loads(json.dumps(config)), arrays, device="cpu"
        )

    @pytest.mark.slow
    def test_fitting_twice_gives_the_same_state(self, kind: str, model: GenerativeModel) -> None:
        if not getattr(model, "reproducible", True):
            pytest.skip("its noise is a secret, and new in every training")
        config, arrays = model.state()
        again_config, again = self.fitted(kind).state()
        assert again_config == config
        assert as_bytes(again) == as_bytes(arrays)

    @pytest.mark.slow
    def test_state_is_json_and_arrays_and_samples_the_same_bits(
        self, kind: str, model: GenerativeModel
    ) -> None:
        loaded = self.loaded(kind, model)
        drawn = [m.sample(CONDITIONS, seeds=seeds(len(CONDITIONS))) for m in (model, loaded)]
        assert drawn[0].tobytes() == drawn[1].tobytes()
        assert loaded.n_steps == model.n_steps > 0
        (config, arrays), (again_config, again) = model.state(), loaded.state()
        assert again_config == config
        assert as_bytes(again) == as_bytes(arrays)

    @pytest.mark.slow
    def test_an_empty_request_gives_no_record(self, model: GenerativeModel) -> None:
        drawn = model.sample(CONDITIONS[:0], seeds=seeds(0))
        assert drawn.shape == (0, *self.X.shape[1:])
        assert drawn.dtype == self.X.dtype

    @pytest.mark.slow
    def test_unknown_classes_missing_seeds_and_no_records_are_refused(
        self, kind: str, model: GenerativeModel
    ) -> None:
        with pytest.raises(AugmentError, match="classes 0 to 2"):
            model.sample(np.array([3]), seeds=seeds(1))
        with pytest.raises(AugmentError, match="seeds"):
            model.sample(np.array([0, 1]), seeds=seeds(1))
        with pytest.raises(AugmentError, match="0 training records"):
            self.fit_nothing(kind)

    def test_an_unfitted_model_says_so(self, kind: str) -> None:
        with pytest.raises(AugmentError, match="fitted"):
            self.unfitted(kind).sample(np.array([0]), seeds=seeds(1))

    def test_params_of_another_model_are_refused(self, kind: str) -> None:
        with pytest.raises(AugmentError):
            load_model_class(kind, modality=self.modality).build(Budget(), self.spec)

    @pytest.mark.slow
    def test_a_record_embeds_by_itself(self, model: GenerativeModel) -> None:
        assert_embeds_alone(encoding(model), self.X)

    @pytest.mark.slow
    def test_latent_vectors_of_another_size_unknown_classes_and_foreign_records_are_refused(
        self, model: GenerativeModel
    ) -> None:
        encodes, (foreign, words) = encoding(model), self.foreign
        wrong = np.zeros((2, encodes.n_latent + 1), dtype=np.float32)
        with pytest.raises(AugmentError, match="latent vectors"):
            encodes.decode_latents(wrong, np.array([0, 1]))
        with pytest.raises(AugmentError, match="classes 0 to 2"):
            encodes.decode_latents(wrong[:, 1:], np.array([0, 3]))
        with pytest.raises(AugmentError, match=words):
            encodes.embed(foreign)

    @pytest.mark.slow
    def test_latent_space_comes_back_from_storage(self, kind: str, model: GenerativeModel) -> None:
        encodes, loaded = encoding(model), self.loaded(kind, model)
        assert loaded.embed(self.X).tobytes() == encodes.embed(self.X).tobytes()
        assert loaded.anomaly_scores(self.X).tobytes() == encodes.anomaly_scores(self.X).tobytes()

    @pytest.mark.slow
    def test_the_likeliest_class_is_mostly_the_right_one(self, model: GenerativeModel) -> None:
        if not isinstance(model, ScoresClasses):
            pytest.skip("does not know how likely a record is")
        scores = model.class_log_likelihoods(self.X)
        assert scores.shape == (len(self.y), 3)
        assert np.isfinite(scores).all()
        assert (scores.argmax(axis=1) == self.y).mean() > 0.9
