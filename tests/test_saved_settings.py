"""Configurations of earlier versions: the classes that their config.yml files name, and keys that came later."""

from __future__ import annotations

from importlib import import_module

import pytest
import yaml

from mnif_nerf.errors import MNIFError

# Every class and function that a config.yml of 0.1.0 may name.
OLD_NAMES = (
    "mnif_nerf.models.base.InstanceModelConfig",
    "mnif_nerf.models.datamanager.MNIFDataManager",
    "mnif_nerf.models.datamanager.MNIFDataManagerConfig",
    "mnif_nerf.models.dataparser.SrnDataParser",
    "mnif_nerf.models.dataparser.SrnDataParserConfig",
    "mnif_nerf.models.grid_data.GridDataManager",
    "mnif_nerf.models.grid_data.GridDataManagerConfig",
    "mnif_nerf.models.image.ImageModel",
    "mnif_nerf.models.image.ImageModelConfig",
    "mnif_nerf.models.model.MNIFModel",
    "mnif_nerf.models.model.MNIFModelConfig",
    "mnif_nerf.models.schedulers.FieldAdamConfig",
    "mnif_nerf.models.schedulers.LatentAdamConfig",
    "mnif_nerf.models.schedulers.WarmupCosineScheduler",
    "mnif_nerf.models.schedulers.WarmupCosineSchedulerConfig",
    "mnif_nerf.models.voxel.VoxelModel",
    "mnif_nerf.models.voxel.VoxelModelConfig",
    "mnif_nerf.pipelines.grids.GridPipeline",
    "mnif_nerf.pipelines.grids.GridPipelineConfig",
    "mnif_nerf.pipelines.trainer.MNIFTrainer",
    "mnif_nerf.pipelines.trainer.MNIFTrainerConfig",
    "mnif_nerf.pipelines.training.MNIFTrainingPipeline",
    "mnif_nerf.pipelines.training.MNIFTrainingPipelineConfig",
    "mnif_nerf.latents.table.RowAdam",
)
OLD_MODEL = """
!!python/object:mnif_nerf.models.voxel.VoxelModelConfig
_target: !!python/name:mnif_nerf.models.voxel.VoxelModel ''
collider_params: {near_plane: 2.0}
enable_collider: false
head: logit
latent_dim: 64
loss_coefficients: {}
prompt: null
width: 48
"""


@pytest.mark.parametrize("name", OLD_NAMES)
def test_the_names_are_still_there(name: str) -> None:
    pytest.importorskip("nerfstudio")
    module, _, attribute = name.rpartition(".")
    assert callable(getattr(import_module(module), attribute))


def test_missing_keys_get_defaults_and_retired_ones_are_dropped() -> None:
    pytest.importorskip("nerfstudio")
    settings = yaml.load(OLD_MODEL, Loader=yaml.Loader)
    assert (settings.head, settings.latent_dim, settings.width) == ("logit", 64, 48)
    assert (settings.family, settings.modulation, settings.num_bases) == ("siren", "mixture", 256)
    assert not hasattr(settings, "prompt")


def test_unknown_keys_are_refused() -> None:
    pytest.importorskip("nerfstudio")
    with pytest.raises(MNIFError, match=r"does not know .*from_the_future of VoxelModelSettings"):
        yaml.load(OLD_MODEL + "from_the_future: 1\n", Loader=yaml.Loader)
