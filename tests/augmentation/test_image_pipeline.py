"""Presets by domain, what they forbid and how they get stronger; pipelines as YAML; plug-ins."""

import json
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

albumentations = pytest.importorskip("albumentations", reason="needs the extra 'images'")

from prefect_augment import registry  # noqa: E402
from prefect_augment.augmentation import image_policy as images  # noqa: E402
from prefect_augment.augmentation.image_pipeline import Operation, flattened, read_pipeline  # noqa: E402
from prefect_augment.augmentation.image_policy import ImagePolicy, record_seed  # noqa: E402
from prefect_augment.augmentation.image_presets import DOMAINS, PRESETS, check_allowed, stronger  # noqa: E402
from prefect_augment.errors import ParameterError  # noqa: E402
from prefect_augment.evaluation.classifiers.batch_transforms import ClassicRanges  # noqa: E402
from prefect_augment.params import Classic  # noqa: E402
from prefect_augment.registry import ALLOW_IMPORT_PATHS  # noqa: E402

PIPELINE = """
- HorizontalFlip: {p: 0.5}
- OneOf:
    p: 0.3
    transforms:
      - GaussianBlur: {blur_limit: [3, 5], p: 1.0}
      - GaussNoise
- Affine: {rotate: [-10, 10], border_mode: 4, p: 1.0}
"""


def corner(size: int = 32) -> NDArray[np.uint8]:
    """All in the top left, more at the left than at the top."""
    image = np.zeros((size, size, 1), dtype=np.uint8)
    image[: size // 3, : size // 2] = 255
    return image


def seeds(n: int) -> list[int]:
    return [record_seed(0, f"{i:032x}", 0) for i in range(n)]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_no_preset_has_what_its_domain_forbids(name: str) -> None:
    check_allowed(PRESETS[name], name)
    known = {n for n, v in vars(albumentations).items() if isinstance(v, type)}
    assert set(DOMAINS[name].forbids) <= known | {"PiecewiseAffine"}, "a name that does not exist"


@pytest.mark.parametrize("name", ["safe", "characters", "medical"])
def test_where_sides_mean_something_nothing_is_mirrored_or_turned_over(name: str) -> None:
    """A 6 must not become a 9, nor left become right."""
    policy = ImagePolicy.from_params(Classic(image=name))  # type: ignore[arg-type]
    names = {operation.name for operation in flattened(policy.operations)}
    assert not any("Flip" in n or "Transpose" in n or "Rotate" in n for n in names)
    for seed in seeds(200):
        changed = policy.apply(corner(), seed=seed, prob=1.0).astype(int)
        assert changed[:16, :16].sum() > max(changed[:16, 16:].sum(), changed[16:, :16].sum())


@pytest.mark.parametrize(
    ("name", "quarters"),
    [("natural", {(0, 0), (0, 1)}), ("vehicles", {(0, 0), (0, 1)}),
     ("texture", {(0, 0), (0, 1), (1, 0), (1, 1)})],
)  # fmt: skip
def test_other_domains_mirror_the_ways_that_they_say(name: str, quarters: set[Any]) -> None:
    policy = ImagePolicy.from_params(Classic(image=name))  # type: ignore[arg-type]
    found = set()
    for seed in seeds(80):
        changed = policy.apply(corner(), seed=seed, prob=1.0).astype(int)
        sums = changed.reshape(2, 16, 2, 16).sum(axis=(1, 3))
        found.add(tuple(int(i) for i in np.unravel_index(sums.argmax(), (2, 2))))
    assert found == quarters


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"none"}))
@pytest.mark.parametrize("shape", [(8, 8, 1), (20, 33, 3)])
def test_presets_keep_every_size_and_say_what_they_do(name: str, shape: tuple[int, ...]) -> None:
    policy = ImagePolicy.from_params(Classic(image=name))  # type: ignore[arg-type]
    policy.check()
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    changed = [policy.apply(image, seed=seed, prob=1.0) for seed in seeds(30)]
    assert {c.shape for c in changed} == {shape}
    assert len({c.tobytes() for c in changed}) > 10
    assert f"preset {name}" in policy.rule


def test_trivial_augment_does_one_of_fourteen_each_as_often() -> None:
    """An identity among them: a share of the copies, about one in fourteen, is the original."""
    (one_of,) = PRESETS["trivial"]
    assert (one_of.name, len(one_of.inner)) == ("OneOf", 14)
    policy = ImagePolicy.from_params(Classic(image="trivial", image_prob=1.0))
    image = np.random.default_rng(0).integers(40, 200, (16, 16, 3), dtype=np.uint8)
    same = sum(np.array_equal(policy.apply(image, seed=s), image) for s in seeds(280))
    assert 8 <= same <= 40  # 20 ± 4 standard deviations


def test_a_pipeline_as_yaml_does_what_albumentations_does_by_its_own_file() -> None:
    short = read_pipeline(PIPELINE)
    assert [op.name for op in flattened(short)] == [
        "HorizontalFlip", "OneOf", "GaussianBlur", "GaussNoise", "Affine",
    ]  # fmt: skip
    blurs = [albumentations.GaussianBlur(blur_limit=(3, 5), p=1.0), albumentations.GaussNoise()]
    whole = albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=0.5),
            albumentations.OneOf(blurs, p=0.3),
            albumentations.Affine(rotate=(-10, 10), border_mode=4, p=1.0),
        ],
        p=1.0,
    )
    written = read_pipeline(yaml.safe_dump(whole.to_dict()))
    a, b = (ImagePolicy(ops, prob=1.0) for ops in (short, written))
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    inner = b.operations[0].inner
    assert [op.name for op in inner] == [op.name for op in a.operations]
    alone = ImagePolicy(inner, prob=1.0)
    for seed in seeds(20):
        assert np.array_equal(a.apply(image, seed=seed), alone.apply(image, seed=seed))


def test_a_policy_goes_through_json_and_does_the_same() -> None:
    policy = ImagePolicy.from_params(Classic(policy=PIPELINE, image_prob=0.7))
    again = ImagePolicy.from_config(json.loads(json.dumps(policy.info)))
    assert again.digest == policy.digest
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 1), dtype=np.uint8)
    for seed in seeds(20):
        assert np.array_equal(policy.apply(image, seed=seed), again.apply(image, seed=seed))
    assert set(policy.info["libraries"]) == {"albumentations", "opencv-python-headless", "numpy"}
    assert all(policy.info["libraries"].values())


def test_patterns_of_flips_in_yaml_are_independent() -> None:
    text = "[HorizontalFlip: {p: 0.5}, VerticalFlip: {p: 0.5}, Transpose: {p: 0.5}, NoOp]"
    policy = ImagePolicy.from_params(Classic(policy=text, image_prob=1.0))
    image = np.arange(9, dtype=np.uint8).reshape(3, 3, 1)
    assert len({policy.apply(image, seed=s).tobytes() for s in seeds(200)}) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- [", "no YAML"),
        ("[" * 600, "no YAML: it is nested too deeply"),
        ("#" * (8 << 20) + "\n\n", "no YAML: it has 8,388,610 bytes"),
        ("5", "is int; expected a list"),
        ("[]", "expected a list"),
        ("- 7", r"policy\[0\] is 7; expected an operation's name"),
        ("- HorizontalFlip: 3", r"policy\[0\] is .*expected an operation's name"),
        ("- OneOf: {p: 1.0}", "OneOf takes a list of operations"),
        ("- Rotate: {transforms: [NoOp]}", "Rotate takes no 'transforms'"),
        ("- Compose: {transforms: [NoOp], bbox_params: {format: coco}}", "Compose has 'bbox_params'"),
        ("- Rotat: {limit: 5}", "no operation 'Rotat'; did you mean 'Rotate'"),
        ("- OneOf: {transforms: [{Rotate: {limt: 5}}]}", "no argument 'limt'; did you mean 'limit'"),
        ("- Rotate: {limit: five}", "does not take"),
        ("- Normalize: {p: 1.0}", "makes float32 of shape"),
        ("- !!python/object/apply:os.system ['true']", "no YAML"),
    ],
)  # fmt: skip
def test_mistakes_in_yaml_are_named(text: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        ImagePolicy.from_params(Classic(policy=text)).check()


@pytest.mark.parametrize(
    ("domain", "text", "message"),
    [
        ("characters", "- HorizontalFlip", "'HorizontalFlip', which the domain"),
        ("medical", "- OneOf: {transforms: [HueSaturationValue]}", "'HueSaturationValue'"),
        ("texture", "- CoarseDropout", "forbids"),
        ("characters", "- Rotate: {limit: 45}", "by up to 45 degrees; .* allows 20"),
        ("characters", "- Rotate", "by up to 90 degrees"),
    ],
)
def test_a_pipeline_keeps_the_rules_of_its_domain(domain: Any, text: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        ImagePolicy.from_params(Classic(image=domain, policy=text))
    ImagePolicy.from_params(Classic(policy=text)).check()


def test_two_policies_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="leave one of them out"):
        Classic(policy="- NoOp", plugin="mine")
    with pytest.raises(ValueError, match="image is 'none' and a policy is given"):
        Classic(image="none", policy="- NoOp")


def darker(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A user's function."""
    return (image * rng.uniform(0.5, 1.0)).astype(np.uint8)


def broken(image: NDArray[np.uint8], rng: np.random.Generator) -> Any:
    """One that gives what no image is."""
    return image / 2


@pytest.fixture
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint(n, f"{__name__}:{n}", images.ENTRY_POINTS) for n in ("darker", "broken")]
    for point in points:
        monkeypatch.setattr(type(point), "load", lambda self: globals()[self.name], raising=True)
    monkeypatch.setattr(registry, "entry_points", lambda group: points)


@pytest.mark.usefixtures("_plugins")
def test_a_plugin_changes_images_by_the_seed_alone() -> None:
    policy = ImagePolicy.from_params(Classic(plugin="darker", image_prob=1.0))
    policy.check()
    image = np.full((4, 4, 3), 200, dtype=np.uint8)
    first, again, other = (policy.apply(image, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.max() < 200
    with pytest.raises(ParameterError, match="without their boxes"):
        policy.apply_targets(image, images.Targets(), seed=1)


@pytest.mark.usefixtures("_plugins")
def test_a_plugin_that_is_not_there_or_gives_no_image_is_said() -> None:
    with pytest.raises(ParameterError, match="did you mean 'darker'"):
        ImagePolicy.from_params(Classic(plugin="daker")).check()
    with pytest.raises(ParameterError, match="makes float64 of shape"):
        ImagePolicy.from_params(Classic(plugin="broken")).check()


def test_import_paths_are_followed_only_if_a_worker_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = ImagePolicy.from_params(Classic(plugin="os.path:basename"))
    monkeypatch.delenv(ALLOW_IMPORT_PATHS, raising=False)
    with pytest.raises(ParameterError, match=f"set {ALLOW_IMPORT_PATHS}=1"):
        policy.check()
    monkeypatch.setenv(ALLOW_IMPORT_PATHS, "1")
    with pytest.raises(ParameterError, match="fails on an image"):
        ImagePolicy.from_params(Classic(plugin="os.path:basename")).check()
    with pytest.raises(ParameterError, match="cannot be imported"):
        ImagePolicy.from_params(Classic(plugin="os.path:no_such_thing")).check()


SCALABLE = [name for name in DOMAINS if name not in ("none", "trivial", "random")]


def picture() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(60, 190, (24, 24, 3), dtype=np.uint8)


def change(policy: ImagePolicy) -> float:
    """How far a picture is changed on average, over some seeds."""
    image = picture()
    made = [policy.apply(image, seed=seed, prob=1.0) for seed in range(20)]
    return float(np.mean([np.abs(m.astype(float) - image).mean() for m in made]))


def test_once_as_strong_is_the_policy_itself() -> None:
    policy = ImagePolicy.from_params(Classic())
    assert policy.stronger(1.0) is policy
    assert policy.stronger(2.0).digest != policy.digest


def test_no_strength_leaves_pictures_as_they_are() -> None:
    policy = ImagePolicy.from_params(Classic())
    assert change(policy.stronger(0.0)) < 1.0 < change(policy)


@pytest.mark.parametrize("name", SCALABLE)
def test_presets_keep_their_own_rules_with_twice_the_strength(name: str) -> None:
    policy = ImagePolicy.from_params(Classic(image=name))  # type: ignore[arg-type]
    twice = policy.stronger(2.0)
    check_allowed(twice.operations, name)
    twice.check()
    names = [op.name for op in flattened(policy.operations)]
    assert [op.name for op in flattened(twice.operations)] == names
    assert twice.name == name, "it is known by the preset's name"


def test_a_recipe_gives_the_strength_back() -> None:
    policy = ImagePolicy.from_params(Classic()).stronger(2.0)
    again = ImagePolicy.from_config(policy.info)
    assert again.digest == policy.digest
    image = picture()
    assert np.array_equal(again.apply(image, seed=3, prob=1), policy.apply(image, seed=3, prob=1))


def test_ranges_around_one_stay_above_zero_and_other_arguments_stay() -> None:
    crop = stronger(Operation("RandomResizedCrop", {"scale": (0.4, 1.0), "p": 0.3}), 4.0)
    assert crop.arguments["scale"] == (pytest.approx(0.05), 1.0)
    assert crop.arguments["p"] == 0.3
    flip = Operation("HorizontalFlip", {"p": 0.5})
    assert stronger(flip, 3.0) == flip
    inner = stronger(Operation("OneOf", {"p": 1.0}, (Operation("Rotate", {"limit": 10}),)), 2.0)
    assert inner.inner[0].arguments == {"limit": 20}


def test_the_classifiers_own_transform_scales_like_the_preset() -> None:
    ranges = ClassicRanges().stronger(2.0)
    (move, light) = ImagePolicy.from_params(Classic()).stronger(2.0).operations
    assert move.arguments["rotate"] == (-ranges.rotate_degrees, ranges.rotate_degrees)
    assert move.arguments["scale"] == pytest.approx(ranges.scale_range)
    assert move.arguments["translate_percent"] == pytest.approx((-ranges.shift, ranges.shift))
    assert light.arguments["brightness_limit"] == (-ranges.brightness, ranges.brightness)
    assert light.arguments["contrast_limit"] == (-ranges.contrast, ranges.contrast)
