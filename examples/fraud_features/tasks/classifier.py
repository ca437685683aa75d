"""Their own step after ours: a classifier that follows the published recipe."""

from pathlib import Path

import joblib
import pandas as pd
from prefect import task
from prefect_augment import open_dataset
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import balanced_accuracy_score

FEATURES = ["log_amount", "night", "abroad", "per_hour", "merchant"]


@task
def train_classifier(balanced: str, model_path: str) -> dict[str, float]:
    """Train on the newest version with the weights of its recipe; return the score on its hold-out."""
    dataset = open_dataset(balanced)
    train, holdout = dataset.to_pandas("train"), dataset.to_pandas("holdout")
    classifier = HistGradientBoostingClassifier(
        categorical_features="from_dtype", max_iter=60, random_state=0
    )
    classifier.fit(_matrix(train), train[dataset.label], sample_weight=dataset.sample_weight())
    # A recipe weights the records, and may have a multiplier for each class's probability.
    probabilities = dataset.apply_thresholds(
        classifier.predict_proba(_matrix(holdout)), "boosting", classes=classifier.classes_
    )
    likely = probabilities.argmax(axis=1)
    score = balanced_accuracy_score(holdout[dataset.label], classifier.classes_[likely])
    Path(model_path).parent.mkdir(parents=True, exist_ok=True)
    joblib.dump(classifier, model_path)
    return {"version": dataset.version, "balanced_accuracy": float(score)}


def _matrix(table: pd.DataFrame) -> pd.DataFrame:
    merchants = pd.CategoricalDtype(["food", "online", "travel"])
    return table[FEATURES].astype({"merchant": merchants})
