"""How many records each class should have, and classic augmentation."""

from typing import Literal

from pydantic import Field, model_validator

from prefect_augment.params.base import Params


class ClassTarget(Params):
    """The target of one class, instead of the general one."""

    name: str
    """The class, as the label column spells it."""
    target: int = Field(default=-1, ge=-1)
    """Training records of the class; -1 keeps the general target."""
    max_synthetic_per_real: float = Field(default=-1.0, ge=-1.0)
    """Cap for this class; -1 keeps the general cap; 0 forbids synthetic records."""


class Balance(Params):
    """How many records each class should have."""

    target: Literal["median", "majority", "sqrt", "count"] = "median"
    """median or majority of the class counts; sqrt: halfway to the majority on a log scale; count: the number below. No
    class is ever made smaller."""
    count: int = Field(default=0, ge=0)
    """Training records per class for target=count."""
    max_synthetic_per_real: float = Field(default=-1.0, ge=-1.0)
    """At most so many synthetic records per real one; the rest of the way to the target is resampling. -1: 1, or up to
    5 where model is auto and the number is searched on validation records. Above 5 a warning says that this has been
    seen to hurt. Soft labels draw twice as many, of every class, and leave the balance to weights."""
    max_per_class: int = Field(default=0, ge=0)
    """No class is brought above this; 0 for no such cap."""
    unit: Literal["record", "object"] = "record"
    """What is counted. object: boxes of images; whole images are copied until rare classes of boxes reach their target
    (the flow augment; repeat-factor sampling with target sqrt)."""
    by: list[str] = Field(default_factory=list)
    """Further columns to balance within, e.g. a site or a sex: each combination is balanced by itself."""
    classes: list[ClassTarget] = Field(default_factory=list)
    """Classes with a target or cap of their own."""

    @property
    def most_per_real(self) -> float:
        """The cap; 1 if none is set."""
        return 1.0 if self.max_synthetic_per_real < 0 else self.max_synthetic_per_real

    @model_validator(mode="after")
    def _count_is_set(self) -> "Balance":
        if self.target == "count" and self.count < 1:
            raise ValueError(
                "target is 'count' but count is 0; say how many records each class should have."
            )
        names = [c.name for c in self.classes]
        if len(names) != len(set(names)):
            raise ValueError("classes names the same class twice; keep one entry per class.")
        return self


ImageStrategy = Literal[
    "CMO", "CutMix", "mixup", "deferred re-weighting", "label-aware smoothing", "patch features"
]


class Classic(Params):
    """Classic augmentation: the SMOTE family on tables, small changes of images."""

    table: Literal["smote", "borderline", "adasyn", "oversampling", "jitter", "none"] = "smote"
    """smote interpolates between neighbours of a class (SMOTENC with categories); borderline starts at the border to
    other classes, adasyn the more often the nearer these are; oversampling copies records and moves them as shrinkage
    says, jitter by a share of the class's deviation."""
    shrinkage: float = Field(default=1.0, ge=0.0, le=10.0)
    """oversampling: width of the noise, 1 being Silverman's rule (ROSE); 0 copies as they are."""
    jitter: float = Field(default=0.05, gt=0.0, le=1.0)
    """jitter: deviation of the noise, as a share of the class's own."""
    text: Literal["none", "light"] = "none"
    """Columns of free text in new records of tables. light: the parent's, with some words swapped, left out or
    mistyped; none leaves them empty."""
    text_plugin: str = ""
    """A function of your own that changes texts, by its name in the entry-point group prefect_augment.text."""
    k_neighbors: int = Field(default=5, ge=1, le=50)
    """Neighbours to interpolate with; fewer in tiny classes."""
    max_memory_mib: int = Field(default=2048, ge=64)
    """Refuse, with advice, when the estimate of the memory needed is above this."""
    image: Literal[
        "safe", "natural", "characters", "medical", "texture", "vehicles", "trivial", "random", "none"
    ] = "safe"  # fmt: skip
    """What is done to images. safe: turns by up to 10 degrees, scales by up to a tenth, shifts by up to 7 %, changes
    brightness and contrast by up to a tenth, never flips. Presets of a domain do more, and forbid what would change a
    label there; trivial is TrivialAugment, random is RandAugment."""
    policy: str = ""
    """A pipeline of albumentations as YAML, instead of a preset's operations; the preset named above still forbids.
    Example: '- Rotate: {limit: 5, p: 1.0}'."""
    plugin: str = ""
    """A function of your own that changes images, by its name in the entry-point group prefect_augment.policies."""
    on_label_damage: Literal["warn", "refuse", "ignore"] = "warn"
    """Policies other than safe are tried on a small classifier of the real images: when too many changed ones are
    another class's to it, warn, refuse, or do not look."""
    max_label_damage: float = Field(default=0.2, ge=0.0, le=1.0)
    """So many (lower end of the interval) are too many."""
    min_visibility: float = Field(default=0.1, ge=0.0, le=1.0)
    """Images with boxes: a box of which a smaller share of the area stays in the image is left out."""
    image_prob: float = Field(default=0.5, gt=0.0, le=1.0)
    """How many of the images that a classifier sees are changed at all."""
    image_strategies: list[ImageStrategy] = Field(default=["patch features"])
    """Strategies of images beside the usual ones. Patch features train a linear classifier on patches of the images, in
    the place of the built-in network; not beside networks of yours. CMO pastes a rectangle of a rare class's image into
    any other, under balanced softmax. CutMix and mixup do so, or take a mean of both, on images drawn evenly. Deferred
    re-weighting draws evenly in the last part of the training only; label-aware smoothing trusts labels of large
    classes less."""

    @model_validator(mode="after")
    def _one_policy(self) -> "Classic":
        if self.text != "none" and self.text_plugin:
            raise ValueError("text and text_plugin are both given; leave one of them out.")
        if self.policy and self.plugin:
            raise ValueError("policy and plugin are both given; leave one of them out.")
        if self.image == "none" and (self.policy or self.plugin):
            raise ValueError(
                "image is 'none' and a policy is given; choose 'safe', or the domain whose rules it must keep."
            )
        return self
