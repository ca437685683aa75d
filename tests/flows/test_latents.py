"""Uses of a model's latents as flows, as tasks of other flows, and as commands."""

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import flow
from support import releases, run_pages
from support.tables import source_of

from prefect_augment import (
    Anomalies,
    AttributeShift,
    Classification,
    Denoising,
    Destination,
    Experiment,
    Interpolation,
    Output,
    Reconstruction,
    Release,
    RunParams,
    Source,
    TreesModel,
    anomalies,
    classify,
    denoise,
    embed,
    ingest_dataset,
    interpolate,
    open_latents,
    open_version,
    publish_dataset,
    reconstruct,
    select_classes,
    shift_attribute,
    train,
    train_model,
    use_latents,
)
from prefect_augment.cli import app as cli, latents as commands, options
from prefect_augment.errors import ParameterError
from prefect_augment.flows import latents as flows
from prefect_augment.params import PluginModel
from prefect_augment.schema import BalancePlan
from prefect_augment.storage import open_store


@pytest.fixture
def asked(source: Source, destination: Destination, linear_model: PluginModel) -> dict[str, Any]:
    return {"source": source, "destination": destination, "model": linear_model}


# --- flows ---


@pytest.mark.flow
def test_a_run_shows_its_picture_and_says_what_came_of_it(asked: dict[str, Any]) -> None:
    state = anomalies(**asked, anomalies=Anomalies(train_on=["ok"]), return_state=True)
    result = state.result()
    assert state.name == "Completed", "automations wait for this name"
    assert "beyond the threshold" in (state.message or "")
    assert "AUROC on validation records" in (state.message or "")
    artifacts = run_pages.artifacts(run_pages.run_id(state))
    shown = {(a.key or "").partition("-")[0]: a for a in artifacts if a.type == "markdown"}
    assert "data:image/png;base64" in shown["anomalies"].data
    assert len(json.dumps(shown["anomalies"].data)) < 200_000
    assert open_latents(result.uri).info.summary["normal"] == ["ok"]


@pytest.mark.slow
def test_every_flow_leaves_its_result_beside_the_dataset(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    uses = {
        "_embeddings": embed,
        "_anomalies": anomalies,
        "_reconstructions": reconstruct,
        "_interpolations": interpolate,
        "_shifts": shift_attribute,
        "_classes": classify,
    }
    for folder, use in uses.items():
        result = use.fn(**asked)
        assert Path(result.uri).parent == tmp_path / "out" / folder
        assert open_latents(result.uri).to_table().num_rows == result.latents.n_records


@pytest.mark.parametrize(
    "use", [embed, anomalies, reconstruct, denoise, interpolate, shift_attribute, classify]
)
def test_every_flow_takes_the_same_beside_its_own_section(use: Any) -> None:
    names = list(use.parameters.model_dump()["properties"])
    own = 1 if use is not embed else 0
    assert names[:2] == ["source", "destination"]
    assert names[2 + own :] == ["model", "budget", "output", "seed"]


def test_the_model_that_train_left_is_used(asked: dict[str, Any], tmp_path: Path) -> None:
    trained = train.fn(**asked, seed=3)
    assert embed.fn(**asked, seed=3).model == trained.model
    models = open_store(str(tmp_path / "out")).list("_staging/train")
    assert {path.split("/")[2] for path in models} == {trained.model.key}


def test_a_model_that_is_not_able_is_refused_before_anything_is_read(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match="'trees' has no latent space"):
        embed.fn(**{**asked, "model": TreesModel()})
    assert not (tmp_path / "out").exists()


def test_a_result_inside_the_source_is_refused(asked: dict[str, Any], tmp_path: Path) -> None:
    folder = asked["source"].model_copy(update={"uri": str(tmp_path)})
    inside = Output(uri=str(tmp_path / "vectors"))
    elsewhere = Destination(uri=f"{tmp_path}-out")
    with pytest.raises(ParameterError, match="lies inside the source"):
        embed.fn(**{**asked, "source": folder, "destination": elsewhere}, output=inside)


def test_images_are_denoised_by_the_flow(
    linear_model: PluginModel, messy_images: Any, destination: Destination, tmp_path: Path
) -> None:
    pictures = releases.image_table(messy_images, 60)
    result = denoise.fn(
        source=source_of(pictures, tmp_path / "in.parquet", "label"),
        destination=destination,
        denoising=Denoising(noise=0.3),
        model=linear_model,
    )
    assert Path(result.uri).parent == tmp_path / "out" / "_denoised"
    assert result.latents.summary["noise"] == 0.3
    assert open_latents(result.uri).to_table().num_rows == result.latents.n_records


# --- tasks ---


@pytest.mark.flow
def test_tasks_take_one_anothers_references(asked: dict[str, Any], tmp_path: Path) -> None:
    @flow
    def theirs() -> Any:
        dataset = ingest_dataset.submit(asked["source"], asked["destination"])
        two = select_classes.submit(dataset, ["ok", "worn"])
        params = RunParams(model=asked["model"])
        plan = BalancePlan.without_amounts()
        model = train_model.submit(Experiment(dataset=two.result(), plan=plan, params=params))
        normal = Anomalies(normal_share=0.1)
        scored = use_latents.submit("anomalies", dataset, model, normal)
        output = Output(uri=str(tmp_path / "vectors"))
        vectors = use_latents.submit("embeddings", dataset, model, output=output)
        return scored.result(), vectors.result()

    scored, vectors = theirs()
    assert scored.n_records == vectors.n_records == 348
    assert vectors.root == str(tmp_path / "vectors")
    assert open_latents(f"{vectors.root}/{vectors.folder}").vectors().shape == (348, 3)


def test_every_task_is_a_plain_function_outside_prefect(asked: dict[str, Any]) -> None:
    dataset = ingest_dataset.fn(asked["source"], asked["destination"])
    plan, params = BalancePlan.without_amounts(), RunParams(model=asked["model"])
    experiment = Experiment(dataset=dataset, plan=plan, params=params)
    model = train_model.fn(experiment)
    strip = use_latents.fn("interpolations", dataset, model, Interpolation(n_steps=3))
    assert strip.n_records == 5
    shift = AttributeShift(only=[strip.summary["start"]], strengths=[0, 1, 2])
    assert use_latents.fn("shifts", dataset, model, shift).n_records == 3
    as_ok = use_latents.fn("reconstructions", dataset, model, Reconstruction(as_class="ok"))
    assert as_ok.n_records == dataset.n_records
    classes = use_latents.fn("classes", dataset, model, Classification(prior="observed"))
    assert classes.summary["prior"] == "observed"
    publish_dataset.fn(Release(experiment=experiment))
    published = open_version.fn(asked["destination"])
    assert use_latents.fn("embeddings", published, model).n_records == dataset.n_records


# --- commands ---


@pytest.fixture
def call(
    asked: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Callable[..., tuple[int, str, str]]:
    """Call a command on the source, without Prefect; returns exit code, stdout and stderr."""

    class Plain:
        def __init__(self, flow: Any) -> None:
            self.validate_parameters = flow.validate_parameters
            self.fn = flow.fn

        def __call__(self, **parameters: Any) -> Any:
            return self.fn(**parameters)

    monkeypatch.setattr(options, "prefect_session", lambda quiet: nullcontext())
    for name in (command.__name__ for command in commands.COMMANDS):
        monkeypatch.setattr(flows, name, Plain(getattr(flows, name)))
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump({"model": asked["model"].model_dump(mode="json")}))

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        places = [asked["source"].uri, asked["destination"].uri]
        line = ["prefect-augment", name, *places, "--label", "state", *map(str, arguments)]
        monkeypatch.setattr("sys.argv", line)
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        code = end.value.code
        return (code if isinstance(code, int) else 0), captured.out, captured.err

    run.params = params  # type: ignore[attr-defined]
    return run


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("embed", ["--part", "validation", "--part", "training"], "vectors of 3 numbers"),
        ("anomalies", ["--train-on", "ok", "--normal-share", "0.1"], "beyond the threshold"),
        ("reconstruct", ["--as-class", "ok"], "Reconstructed 348 records"),
        ("interpolate", ["--from", "worn", "--to", "ok", "--records", "4"], "Made 4 records"),
        (
            "shift-attribute",
            ["--from", "ok", "--to", "worn", "--strength", "0", "--strength", "-1"],
            "by 2 strengths of the way from 'ok' to 'worn' of 'state'",
        ),
        ("classify", ["--prior", "observed"], "with the prior observed"),
    ],
)
def test_a_command_says_what_came_of_it_and_where_it_is(
    call: Any, tmp_path: Path, name: str, options: list[str], said: str
) -> None:
    code, out, _ = call(name, *options, "--params", call.params)
    assert code == 0
    assert said in out
    code, out, _ = call(name, *options, "--params", call.params, "--json")
    found = json.loads(out.splitlines()[-1])
    assert found["uri"].startswith(str(tmp_path / "out"))
    latents = open_latents(found["uri"])
    assert latents.info.summary == found["latents"]["summary"]
    assert found["model"]["kind"] == "linear"


def test_a_result_goes_where_the_command_says(call: Any, tmp_path: Path) -> None:
    code, out, _ = call("embed", "--out", tmp_path / "vectors", "--params", call.params, "--json")
    assert code == 0
    uri = json.loads(out.splitlines()[-1])["uri"]
    assert Path(uri).parent == tmp_path / "vectors"
    assert not (tmp_path / "out" / "_embeddings").exists()


def test_a_use_that_model_or_records_do_not_allow_ends_with_2(call: Any) -> None:
    code, _, err = call("embed", "--model", "trees")
    assert code == 2
    assert "has no latent space" in " ".join(err.split())
    code, _, err = call("denoise", "--noise", "0.2", "--params", call.params)
    assert code == 2
    assert "denoising is of images" in " ".join(err.split())


# --- the page in the docs ---


@pytest.mark.flow
def test_the_page_in_the_docs_runs(
    source: Source, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(source.uri).rename("parts.parquet")
    page = (repository / "docs" / "latents.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL):
        code = code.replace("AutoencoderModel()", "AutoencoderModel(width=32, epochs=20)")
        exec(compile(code, "latents.md", "exec", dont_inherit=True), names)
    assert min(names["scores"].values()) > 1 / 3, (
        "three classes of the hold-out, better than chance"
    )
    assert 0 < names["nmi"] < 1
    assert names["strip"].num_rows == 3 * 260, "all records of 'ok', in three strengths"
    assert names["told_apart"] > 0.7
    assert names["auroc"] > 0.6
    assert names["strangest"]["anomaly"].all()
    drawn, beside = names["look_closely"]("parts.parquet", "state", "parts-balanced")
    assert set(open_latents(drawn).to_table()["aug_origin"].to_pylist()) == {"synthetic"}
    assert open_latents(beside).to_table().num_rows == 348
