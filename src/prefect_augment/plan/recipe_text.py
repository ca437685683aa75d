"""A recipe in words: what was done and how to train with it, for the log, the card and recipe.json."""

from prefect_augment.schema import EncoderInfo, Strategy

_SENTENCES = {
    "as_is": "Nothing was added: training on the real records as they are was not beaten.",
    "threshold": "No record was added. Train on the real records as they are, multiply each predicted probability by "
    "the class's multiplier in recipe.json, and take the largest.",
    "soft_labels": "No record was added. Train by RecipeClassifier, which gives each real record a share of every "
    "class that it may belong to. Half of it is by the record's own label, half by an ensemble that has not seen it. "
    "Weights bring every class {amount:.0%} of the way (on a log scale) to the largest one; the column aug_weight has "
    "these alone.",
    "bagging": "No record was added. Train by RecipeClassifier, which trains the estimator on each of ten bags of "
    "records and takes the mean. Bags have fewer records of frequent classes: {amount:.0%} of the way (on a log scale) "
    "to the smallest one. The column aug_weight has the same balance without the bags.",
}


def recipe_sentence(
    strategy: Strategy,
    *,
    n_synthetic: int,
    n_classic: int,
    copies: bool,
    policy: str,
    soft_labels: bool = False,
    encoder: EncoderInfo | None = None,
) -> str:
    """What was done and how to train with it.

    ``copies``: duplicates are written instead of weights. ``policy``: the classic policy applied on
    the fly. ``soft_labels``: a synthetic record has a row for each likely class.
    ``encoder``: whose features a linear probe is trained on.
    """
    if strategy.family in _SENTENCES:
        return _SENTENCES[strategy.family].format(amount=strategy.amount)
    if strategy.family == "loss":
        times = "" if strategy.amount >= 1 else f"{strategy.amount:g} times "
        softmax = (
            "No record was added. Train with balanced softmax: while training, and only then, add "
            f"{times}the logarithm of the class's share of the training records to each logit."
        )
        return " ".join([softmax, *_on_the_fly(strategy, policy)])
    if encoder is not None:
        return (
            "No record was added. Train LinearProbe, a logistic regression on the features of the encoder "
            f"{encoder.name!r} (sha256 {encoder.sha256[:12]}…, licence {encoder.licence}), by RecipeClassifier: "
            f"weights bring every class {strategy.amount:.0%} of the way (on a log scale) to the largest one, and C is "
            f"{strategy.C:g}. Multiply each predicted probability by the class's multiplier, and take the largest."
        )
    if strategy.patches:
        return (
            "No record was added. Train PatchClassifier.of(recipe), a ridge regression on patches of the images, by "
            f"RecipeClassifier: weights bring every class {strategy.amount:.0%} of the way (on a log scale) to the "
            "largest one. Multiply each predicted probability by the class's multiplier, and take the largest. Empty "
            "classic.image_strategies, or name your network in evaluation.estimators, for the best recipe of a network."
        )
    if strategy.family == "clean":
        less = f"{strategy.doubted_weight:g}" if strategy.doubted_weight else "nothing"
        sentence = (
            "No record was added, and none was dropped. Train with the column aug_weight as sample_weight (or draw "
            f"records in proportion to it): a record whose label the audit doubts counts {less}. These are listed in "
            "recipe.json."
        )
        return " ".join([sentence, *_on_the_fly(strategy, policy)])
    added = []
    synthetic = "rows of synthetic" if soft_labels else "synthetic"
    method = strategy.name.partition(" + ")[0]  # of records of tables, e.g. SMOTE
    for word, total in ((synthetic, n_synthetic), (method, n_classic)):
        if total:
            added.append(f"{total:,} {word} records")
    what = f"{' and '.join(added)} were added" if added else "No record was added"
    if soft_labels and n_synthetic:
        what += ", a record once for each class that it may belong to"
    if copies:
        how = "rare classes are duplicated, so read the train split as it is"
    elif strategy.classic_prob or strategy.real_only_finish < 1 or strategy.is_image_strategy:
        how = "draw records in proportion to the column aug_weight"
    else:
        how = "train with the column aug_weight as sample_weight (or draw records in proportion to it)"
    way = "all" if strategy.amount >= 1 else f"{strategy.amount:.0%}"
    way += " of the way" if strategy.amount >= 1 else " of the way (on a log scale)"
    sentences = [f"{what}; {how}: it brings every class {way} to the largest one."]
    sentences += _on_the_fly(strategy, policy)
    if n_synthetic and strategy.synthetic_weight != 1:
        sentences.append(
            f"A synthetic record counts {strategy.synthetic_weight:g} times as much as a real one of its class, which "
            "aug_weight says."
        )
    if added and strategy.real_only_finish < 1:
        sentences.append(
            f"Draw synthetic records in the first {strategy.real_only_finish:.0%} of the training steps only."
        )
    return " ".join(sentences)


def _on_the_fly(strategy: Strategy, policy: str) -> list[str]:
    """How to use predictions, and records as they are drawn."""
    sentences = []
    if strategy.tune_threshold:
        sentences.append(
            "Multiply each predicted probability by the class's multiplier in recipe.json, and take the largest."
        )
    if strategy.classic_prob:
        times = strategy.classic_strength
        far = f", {times:g} times as far as it says," if times != 1 else ""
        sentences.append(
            f"Apply the classic policy {policy!r}{far} to {strategy.classic_prob:.0%} of the records as they are drawn."
        )
    if strategy.deferred:
        sentences.append(
            f"Draw without weights in the first {strategy.deferred:.0%} of the training steps."
        )
    if strategy.mixing:
        how = "a weighted mean" if strategy.mixing == "mixup" else "a rectangle of it pasted in"
        sentences.append(
            f"Mix {strategy.mixing_prob:.0%} of the records of a batch with a partner ({how}), and their labels in "
            "proportion. The partner's class is drawn evenly from those in the batch (to_torch(recipe=True).collate)."
        )
    if strategy.smoothing:
        sentences.append(
            f"Give {strategy.smoothing:.0%} of the largest class's label to the other classes, of a smaller class's "
            "less, and of the smallest's none, by smoothing in recipe.json. to_torch(recipe=True).collate does."
        )
    return sentences
