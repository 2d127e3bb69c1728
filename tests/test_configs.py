"""The methods of ns-train: their shapes against the paper's, and that every one of them can be built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_srn import write_tiny_srn

pytest.importorskip("nerfstudio")

from mnif_nerf import configs, modalities
from mnif_nerf.fields import FieldSpec, MixtureField
from mnif_nerf.latents.meta import InnerRates
from mnif_nerf.latents.model import Stage1Model
from mnif_nerf.modalities.grid_settings import ImageModelSettings, VoxelModelSettings
from mnif_nerf.pipelines.methods import METHODS as SETTINGS

METHODS = {name.replace("-", "_"): getattr(configs, name.replace("-", "_")).config for name in SETTINGS}
# Learnable numbers without the latents of single instances; of these the bases; and what one instance needs.
PAPER = {
    "mnif_celebahq_s": (5_934_336, 4_358_912, 17_027),
    "mnif_celebahq_l": (33_378_560, 31_999_104, 83_331),
    "mnif_shapenet_s": (5_130_496, 4_342_016, 16_961),
    "mnif_shapenet_l": (46_273_536, 42_598_912, 83_201),
    "mnif_srn_cars_s": (4_590_080, 4_391_936, 17_156),
}


def spec_of(config: Any, resolution: int = 64) -> FieldSpec:
    """The field of a method, without its data."""
    data = config.pipeline.datamanager
    grid = {"resolution": resolution, "channels": data.channels or 3} if "grid" in kind(config) else None
    return modalities.get(data.modality).training.field_spec(config.pipeline.model, grid)


def kind(config: Any) -> str:
    return type(config.pipeline.datamanager).__module__.rsplit(".", 1)[-1]


@pytest.mark.parametrize("name", list(PAPER))
def test_parameters_are_as_many_as_the_papers(name: str) -> None:
    config = METHODS[name]
    spec = spec_of(config)
    with torch.device("meta"):
        field = MixtureField(spec)
    total = sum(parameter.numel() for parameter in field.parameters())
    if config.pipeline.meta() is not None:
        total += sum(rate.numel() for rate in InnerRates(spec.latent_dim).parameters())
    bases = sum(parameter.numel() for parameter in field.bases)
    assert (total, bases, spec.parameters_per_instance) == PAPER[name]


def test_the_papers_settings() -> None:
    for name in PAPER:
        config = METHODS[name]
        meta, optimizers = config.pipeline.meta(), config.optimizers
        assert (meta is None) == (name == "mnif_srn_cars_s")
        if meta is not None:
            assert (meta.inner_steps, meta.inner_lr, meta.first_order) == (3, 1 / 32, False)
            assert config.pipeline.datamanager.instances_per_step == 32
        clip = 1.0 if "shapenet" in name else None
        for group in ("fields", "projection", "inner_rates"):
            assert (optimizers[group]["optimizer"].lr, optimizers[group]["optimizer"].max_norm) == (1e-4, clip)
            assert optimizers[group]["scheduler"].final_fraction == 0
    assert METHODS["mnif_shapenet_s"].pipeline.model.w0 == 50
    assert METHODS["mnif_shapenet_l"].pipeline.model.w0 == 30
    assert {name: METHODS[name].max_num_iterations for name in PAPER} == {
        "mnif_celebahq_s": 675_200,
        "mnif_celebahq_l": 675_200,
        "mnif_shapenet_s": 876_000,
        "mnif_shapenet_l": 438_000,
        "mnif_srn_cars_s": 616_000,
    }


def test_the_frequency_of_pictures_follows_their_resolution() -> None:
    """Three quarters of it, and 30 at most; what is asked for is taken as it is."""

    def frequency(modality: str, settings: Any, size: int) -> float:
        grid = {"resolution": size, "channels": 1}
        return modalities.get(modality).training.field_spec(settings, grid).w0

    frequencies = {size: frequency("image", ImageModelSettings(), size) for size in (8, 20, 40, 64, 256)}
    assert frequencies == {8: 6.0, 20: 15.0, 40: 30.0, 64: 30.0, 256: 30.0}
    assert frequency("image", ImageModelSettings(w0=45.0), 8) == 45.0
    assert frequency("voxel", VoxelModelSettings(w0=12.0), 8) == 12.0
    assert METHODS["mnif_image_lite"].pipeline.model.w0 == 0, "chosen by the data unless asked for"
    assert spec_of(METHODS["mnif_image_lite"], resolution=16).w0 == 12.0


@pytest.mark.parametrize("name", ["mnif_lite", "mnif_sdf_lite", "mnif_voxel_lite", "mnif_image_lite"])
@pytest.mark.parametrize("adaptation", ["auto-decoding", "meta-learning"])
def test_every_adaptation_of_every_modality_has_its_optimisers(name: str, adaptation: str) -> None:
    import dataclasses

    config = METHODS[name]
    config = dataclasses.replace(config, pipeline=dataclasses.replace(config.pipeline, adaptation=adaptation))
    model = Stage1Model(spec_of(config), ["a", "b"], task=None, meta=config.pipeline.meta())  # type: ignore[arg-type]
    groups = model.parameter_groups()
    own = "latents" if adaptation == "auto-decoding" else "inner_rates"
    assert list(groups) == ["fields", "projection", own]
    assert set(groups) < set(config.optimizers)
    assert all(len(group) > 0 for group in groups.values())


def test_names_and_ways() -> None:
    assert {config.method_name.replace("-", "_") for config in METHODS.values()} == set(METHODS)
    ways = {name: config.pipeline.adaptation for name, config in METHODS.items()}
    radiance = {"mnif", "mnif_lite", "mnif_srn_cars_s"}
    signals, surfaces = {"mnif_signal", "mnif_signal_lite"}, {"mnif_sdf", "mnif_sdf_lite"}
    assert {name for name, way in ways.items() if way == "auto-decoding"} == {
        *radiance, *signals, *surfaces, "mnif_voxel", "mnif_voxel_lite", "mnif_image", "mnif_image_lite"
    }  # fmt: skip
    assert {kind(config) for name, config in METHODS.items() if name in radiance} == {"scene_data"}
    assert {kind(config) for name, config in METHODS.items() if name in surfaces} == {"surface_data"}
    assert {kind(config) for name, config in METHODS.items() if name not in radiance | surfaces} == {"grid_data"}
    assert {c.pipeline.datamanager.modality for n, c in METHODS.items() if "image" in n or "celeba" in n} == {"image"}
    assert {c.pipeline.datamanager.modality for n, c in METHODS.items() if "voxel" in n or "shapenet" in n} == {"voxel"}


def test_every_setting_is_reached_from_the_command_line() -> None:
    import tyro
    from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion

    arguments = {
        "--data": "shapes",
        "--pipeline.adaptation": "auto-decoding",
        "--pipeline.inner-steps": "5",
        "--pipeline.inner-lr": "0.5",
        "--pipeline.first-order": "True",
        "--pipeline.model.head": "logit",
        "--pipeline.datamanager.resolution": "32",
        "--optimizers.inner-rates.optimizer.lr": "0.25",
    }
    flat = [word for pair in arguments.items() for word in pair]
    config: Any = tyro.cli(AnnotatedBaseConfigUnion, args=["mnif-voxel-lite", *flat])
    assert config.pipeline.meta() is None
    config.pipeline.adaptation = "meta-learning"
    assert (config.pipeline.meta().inner_steps, config.pipeline.meta().inner_lr) == (5, 0.5)
    assert config.pipeline.meta().first_order is True
    assert (config.pipeline.model.head, config.pipeline.datamanager.resolution) == ("logit", 32)
    assert config.optimizers["inner_rates"]["optimizer"].lr == 0.25
    assert config.pipeline.datamanager.modality == "voxel"


def test_the_dataparser_reads_cameras_as_the_options_say_and_shows_no_blank_instance(tmp_path: Path) -> None:
    from mnif_nerf.data.readers.scene_reading import SceneReading
    from mnif_nerf.data.stores.scene_store import open_store
    from mnif_nerf.models.dataparser import SrnDataParser, SrnDataParserConfig

    data = write_tiny_srn(tmp_path / "data", 3, 4, 2, 1, 16)
    for path in data.glob("*/*/pose/*.txt"):
        pose = np.loadtxt(path).reshape(4, 4)
        pose[:3, 3] *= 2
        np.savetxt(path, np.linalg.inv(pose).reshape(1, 16), fmt="%.9g")
    for path in (data / "cars_train" / "scene000" / "rgb").iterdir():
        Image.new("RGBA", (16, 16)).save(path)
    open_store(data, "train", False, None, SceneReading("w2c", "auto", 0.5))
    parser = SrnDataParser(SrnDataParserConfig(data=data, poses="w2c", scale=0.5))
    for split, views in (("train", 4), ("val", 2)):
        found = parser.get_dataparser_outputs(split)
        assert found.metadata["scene_names"] == ("scene001", "scene002")
        assert found.cameras.camera_to_worlds[:, :, 3].norm(dim=1).tolist() == pytest.approx([1.3] * views, rel=1e-5)


# --------------------------------------------------------------------------------------------------- README's table

SHOWN = [f"{name}{form}" for name in ("mnif", "mnif-sdf", "mnif-voxel", "mnif-image") for form in ("", "-lite")]


def test_the_readme_says_what_the_methods_are() -> None:
    columns = []
    for name in SHOWN:
        config = METHODS[name.replace("-", "_")]
        spec = spec_of(config)
        with torch.device("meta"):
            learned = sum(parameter.numel() for parameter in MixtureField(spec).parameters())
        sizes = f"{spec.num_bases}, {spec.width}, {len(spec.learned_shapes)}"
        columns.append(
            (f"`{name}`", sizes, f"{spec.latent_dim}", f"{learned:,}", f"{spec.parameters_per_instance:,}",
             f"{config.max_num_iterations:,}")
        )  # fmt: skip
    rows = ("", "basis networks, width, layers", "latent code", "learnable parameters", "network of one instance",
            "default length, steps")  # fmt: skip
    table = [f"| {title} | ".replace("|  |", "| |") + " | ".join(cells) + " |" for title, *cells in zip(rows, *columns)]
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for line in table:
        assert line in readme, f"README.md should have the line\n{line}"
    auto_decoding = [config.pipeline.adaptation for name, config in METHODS.items() if name not in PAPER]
    assert set(auto_decoding) == {"auto-decoding"}
