"""The model folder: round trips, damages, the hub (never reached: its functions are replaced)."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mnif_nerf.errors import MNIFError
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.model_folder import locate_model, read_model, write_prior
from mnif_nerf.priors.prior import LatentPrior, PriorConfig
from mnif_nerf.tensor_files import read_tensors, write_tensors

# --- the folder -------------------------------------------------------------------------------------------


def test_folder_round_trip(pipe: MNIFPipeline, tmp_path: Path) -> None:
    written = pipe.save_pretrained(tmp_path / "copy")
    again = MNIFPipeline.from_pretrained(written, device="cpu")
    assert again.names == pipe.names
    assert torch.equal(again.latents, pipe.latents)
    assert torch.equal(again.model.cells, pipe.model.cells)
    for name, value in pipe.model.field.state_dict().items():
        assert torch.equal(again.model.field.state_dict()[name], value)
    assert torch.equal(again(2, seed=3)[1].latent, pipe(2, seed=3)[1].latent)
    assert sorted(p.suffix for p in written.rglob("*") if p.is_file()) == [".json"] * 3 + [".safetensors"] * 4
    assert json.loads((written / "config.json").read_text())["format_version"] == 1


def test_run_folder_config_and_model_folder_mean_the_same(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run" / "model")
    (tmp_path / "run" / "config.yml").write_text("!!python/object:never.read {}\n")
    for path in ("run", "run/config.yml", "run/model", "run/model/config.json"):
        assert locate_model(tmp_path / path) == tmp_path / "run" / "model"


def test_a_folder_of_runs_names_the_newest(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "outputs/cars/mnif/2026-01-01/model")
    with pytest.raises(MNIFError, match="2026-01-01"):
        locate_model(tmp_path / "outputs")


def test_places_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(MNIFError, match="no such file"):
        locate_model(tmp_path / "absent")
    with pytest.raises(MNIFError, match="no model here"):
        locate_model(tmp_path)
    (tmp_path / "config.yml").touch()
    with pytest.raises(MNIFError, match="no model folder yet"):
        locate_model(tmp_path / "config.yml")


def _edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def _edit_tensors(path: Path, change) -> None:
    tensors = load_file(str(path))
    change(tensors)
    save_file(tensors, str(path))


DAMAGES = {
    "version": (lambda f: _edit_config(f, format_version=99), "format version 99"),
    "other format": (lambda f: _edit_config(f, format="other"), "not a model of mnif_nerf"),
    "not json": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "no names": (lambda f: _edit_config(f, names=None), "names is not a list"),
    "endless fits": (lambda f: _edit_config(f, training={"fit_steps": 10**12}), r"config\.json: fit_steps of training"),
    "a loss of NaN": (lambda f: _edit_config(f, training={"truncation": math.nan}), "truncation of training nan"),
    "an empty name": (lambda f: _edit_config(f, names=[""] * 12), "names is not a list"),
    "unknown camera key": (lambda f: _edit_config(f, camera={"shift": 2}), "camera: unknown 'shift'"),
    "unknown adaptation key": (
        lambda f: _edit_config(f, adaptation={"method": "auto-decoding", "outer_steps": 3}),
        "adaptation: unknown 'outer_steps'",
    ),
    "unknown field key": (lambda f: _edit_config(f, field={"wings": 2}), "wings"),
    "fewer names": (lambda f: _edit_config(f, names=["one"]), "12 latents for 1 instance names"),
    "no field": (lambda f: (f / "field.safetensors").unlink(), "field.safetensors: no such file; copy the"),
    "no latents": (lambda f: (f / "latents.safetensors").unlink(), "latents.safetensors: no such file"),
    "truncated": (
        lambda f: (f / "field.safetensors").write_bytes(b"\x10" * 40),
        "not a readable safetensors",
    ),
    "nan weights": (
        lambda f: _edit_tensors(f / "field.safetensors", lambda t: t["bases.0"].fill_(torch.nan)),
        "bases.0 has NaN or infinite numbers",
    ),
    "nan latents": (
        lambda f: _edit_tensors(f / "latents.safetensors", lambda t: t["latents"].fill_(torch.inf)),
        "latents has NaN or infinite numbers",
    ),
    "latent size": (
        lambda f: _edit_tensors(f / "latents.safetensors", lambda t: t.update(latents=torch.zeros(12, 3))),
        "field takes 5",
    ),
    "field shape": (
        lambda f: _edit_tensors(f / "field.safetensors", lambda t: t.update({"bases.0": torch.zeros(2, 2)})),
        "holds 2,868 numbers, and the field of config.json has 3,376",
    ),
    "bounds shape": (
        lambda f: _edit_tensors(f / "bounds.safetensors", lambda t: t.update(cells=torch.zeros(2, 3, 2))),
        "expected \\[G, G, G\\]",
    ),
    "bounds without room": (
        lambda f: _edit_tensors(f / "bounds.safetensors", lambda t: t["cells"].zero_()),
        "nothing anywhere",
    ),
    "bounds of no cell": (
        lambda f: _edit_tensors(f / "bounds.safetensors", lambda t: t.update(cells=torch.zeros(0, 0, 0).byte())),
        "nothing anywhere",
    ),
    "integer weights": (
        lambda f: _edit_tensors(f / "field.safetensors", lambda t: t.update({"bases.0": t["bases.0"].int()})),
        "bases.0 is of type int32",
    ),
    "complex latents": (
        lambda f: _edit_tensors(f / "latents.safetensors", lambda t: t.update(latents=t["latents"] + 0j)),
        "latents is of type complex64",
    ),
    "no scene box": (lambda f: _edit_config(f, half_extent=0), "half_extent 0: expected a finite number above 0"),
    "a negative scene box": (lambda f: _edit_config(f, half_extent=-1), "half_extent -1: expected"),
    "a scene box of NaN": (lambda f: _edit_config(f, half_extent=math.nan), "half_extent nan: expected"),
    "no focal length": (lambda f: _edit_config(f, camera={"focal_over_width": 0}), "focal_over_width of the camera 0"),
    "a camera of NaN": (lambda f: _edit_config(f, camera={"radius": math.nan}), "radius of the camera nan"),
    "a camera of words": (lambda f: _edit_config(f, camera={"radius": [1]}), r"radius of the camera \[1\]"),
    "versions in a list": (lambda f: _edit_config(f, versions=[], format_version=1), "versions is no description"),
    "training in a list": (lambda f: _edit_config(f, training=[1]), "training is no description"),
    "data that is no name": (lambda f: _edit_config(f, training={"data": {"a": 1}}), "data of training is no name"),
    "deep nesting": (lambda f: (f / "config.json").write_text("[" * 100_000), "not valid JSON"),
    "a number of 9,999 digits": (lambda f: (f / "config.json").write_text("9" * 9999), "not valid JSON"),
    "not UTF-8": (lambda f: (f / "config.json").write_bytes(b'{"\xff": 1}'), "not valid JSON"),
    "very many layers": (lambda f: _edit_field(f, hidden_layers=10**8), "hidden_layers of the field is 100,000,000"),
    "very many bases": (lambda f: _edit_field(f, num_bases=10**12), "num_bases of the field is 1,000,000,000,000"),
    "very wide": (lambda f: _edit_field(f, width=10**6), "the field of config.json has"),
    "half a layer": (lambda f: _edit_field(f, hidden_layers=1.5), "hidden_layers of the field is 1.5"),
    "a list for a name": (lambda f: _edit_field(f, head=["radiance"]), "head of the field is "),
    "inner steps without end": (
        lambda f: _edit_config(f, adaptation={"method": "meta-learning", "inner_steps": 10**9, "inner_lr": 1.0}),
        "inner_steps 1,000,000,000",
    ),
    "blocks without end": (lambda f: _edit_prior(f, blocks=10**9), "blocks of the denoiser 1,000,000,000"),
    "a width of words": (lambda f: _edit_prior(f, width="wide"), "width of the denoiser 'wide'"),
    "integer prior": (
        lambda f: _edit_tensors(f / PRIOR, lambda t: t.update({"whitening.mean": t["whitening.mean"].int()})),
        "whitening.mean is of type int32",
    ),
    "a whitening without scale": (
        lambda f: _edit_tensors(f / PRIOR, lambda t: t["whitening.scale"].zero_()),
        "whitening.scale is not above 0",
    ),
    "a scheduler of another prior": (lambda f: _edit_scheduler(f, prediction_type="sample"), "come from different"),
    "a scheduler in a list": (lambda f: (f / SCHEDULER).write_text("[]"), "scheduler_config.json: holds"),
    "timesteps without end": (lambda f: _edit_scheduler(f, num_train_timesteps=10**9), "num_train_timesteps 1,000,0"),
    "no timesteps": (lambda f: _edit_scheduler(f, num_train_timesteps=0), "num_train_timesteps 0"),
    "betas of NaN": (lambda f: _edit_scheduler(f, trained_betas=[math.nan] * 1000), "1000 betas between 0 and 1"),
    "betas of words": (lambda f: _edit_scheduler(f, trained_betas="abc"), "not settings of a"),
}
PRIOR, SCHEDULER = "prior/prior.safetensors", "prior/scheduler/scheduler_config.json"


def _edit_json(path: Path, part: str | None, changes: dict[str, object]) -> None:
    content = json.loads(path.read_text())
    (content if part is None else content[part]).update(changes)
    path.write_text(json.dumps(content))


def _edit_field(folder: Path, **changes: object) -> None:
    _edit_json(folder / "config.json", "field", changes)


def _edit_prior(folder: Path, **changes: object) -> None:
    _edit_json(folder / "prior" / "prior.json", "denoiser", changes)


def _edit_scheduler(folder: Path, **changes: object) -> None:
    _edit_json(folder / SCHEDULER, None, changes)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders_are_one_sentence(damage: str, folder: Path) -> None:
    break_it, words = DAMAGES[damage]
    break_it(folder)
    with pytest.raises(MNIFError, match=words) as caught:
        MNIFPipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 500


def test_prior_of_another_latent_size(folder: Path) -> None:
    write_prior(LatentPrior.fit(torch.randn(9, 3), PriorConfig(steps=2)), folder)
    with pytest.raises(MNIFError, match="latents of 3 numbers"):
        MNIFPipeline.from_pretrained(folder)


def test_prior_with_nans(folder: Path) -> None:
    _edit_tensors(folder / "prior" / "prior.safetensors", lambda t: t["denoiser.output.bias"].fill_(torch.nan))
    with pytest.raises(MNIFError, match=r"output\.bias has NaN or infinite numbers"):
        MNIFPipeline.from_pretrained(folder)


def test_a_prior_of_half_precision_samples(folder: Path) -> None:
    path = folder / "prior" / "prior.safetensors"
    write_tensors(path, {name: value.half() for name, value in read_tensors(path)[0].items()})
    assert len(MNIFPipeline.from_pretrained(folder, device="cpu")(num_samples=1)) == 1


def test_bounds_and_prior_may_be_absent(folder: Path) -> None:
    (folder / "bounds.safetensors").unlink()
    shutil.rmtree(folder / "prior")
    pipe = MNIFPipeline.from_pretrained(folder)
    assert pipe.model.cells is None
    assert pipe.prior is None
    assert pipe.instance(0).render(resolution=8).size == (8, 8)
    assert pipe.nearest(pipe.latents[3]) == (pipe.names[3], 0.0)
    with pytest.raises(MNIFError, match="mnif-train-prior"):
        pipe()


def test_writing_replaces_a_model_but_nothing_else(pipe: MNIFPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(MNIFError, match="something else"):
        pipe.save_pretrained(tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_interrupted_writing_keeps_the_old_model(pipe: MNIFPipeline, folder: Path, monkeypatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LatentPrior, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pipe.save_pretrained(folder)
    with pytest.raises(KeyboardInterrupt):
        write_prior(pipe.prior, folder)
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    assert read_model(folder).prior is not None


# --- the hub (never reached: its two functions are replaced) ----------------------------------------------


def test_hub_round_trip(pipe: MNIFPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    hub = tmp_path / "hub"
    created: list[tuple[str, bool]] = []

    class FakeApi:
        endpoint = "https://hub.example"

        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
            created.append((repo_id, private))

        def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> None:
            shutil.copytree(folder_path, hub / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id, **_: str(hub / repo_id))
    monkeypatch.chdir(tmp_path)
    assert pipe.push_to_hub("someone/cars", private=True) == "https://hub.example/someone/cars"
    assert created == [("someone/cars", True)]
    assert "someone/cars" in (hub / "someone/cars/README.md").read_text()
    again = MNIFPipeline.from_pretrained("someone/cars")
    assert torch.equal(again.latents, pipe.latents)
    assert again.prior is not None


def test_hub_failures_are_one_sentence(pipe: MNIFPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    class FakeApi:
        def create_repo(self, *_: object, **__: object) -> None:
            raise ConnectionError("401 Client Error\nlong traceback")

    def unreachable(*_: object, **__: object) -> str:
        raise OSError("cannot reach the hub\nand more")

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MNIFError, match=r"^someone/cars: could not be uploaded \(401 Client Error\)"):
        pipe.push_to_hub("someone/cars")
    with pytest.raises(MNIFError, match=r"neither a local folder nor .* \(cannot reach the hub\)\.$"):
        MNIFPipeline.from_pretrained("someone/cars")


def test_a_typo_in_an_existing_folder_does_not_ask_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    for path in ("outputs/typo", "outputs/typo/config.yml", "./owner/name", "/owner/name", "name"):
        with pytest.raises(MNIFError, match="no such file"):
            MNIFPipeline.from_pretrained(path)
