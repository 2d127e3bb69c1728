"""nerfstudio's dataparser `srn`: one scene of a data set in the SRN layout, as cameras and image files.

nerfstudio imports this module while its own data managers are still being defined, so it imports none of
them, and neither models nor pipelines. The multi-scene training data does not pass through here: 122,900
cameras in a Python loop take half a minute, the packed store none (`models/datamanager.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from mnif_nerf.data.sampling.views import HELD_OUT_SPLITS, choose_scene, heldout_positions
from mnif_nerf.modalities.radiance_settings import SceneSource
from mnif_nerf.models.errors import tell_user
from mnif_nerf.scene_box import HALF_EXTENT

if TYPE_CHECKING:
    from mnif_nerf.data.readers.srn import Scene


@dataclass
class SrnDataParserConfig(SceneSource, DataParserConfig):
    """One scene of a data set in the SRN layout: <root>/<category>_<split>/<scene>/{rgb,pose}/."""

    _target: type = field(default_factory=lambda: SrnDataParser)


@dataclass
class SrnDataParser(DataParser):
    """Reads one training scene: "train" gives the views trained on, "val" and "test" the held-out ones.

    Raises:
        MNIFError: as `data.srn.read_scene`, told as one line under nerfstudio's commands.
    """

    config: SrnDataParserConfig
    includes_time: bool = False
    downscale_factor: int = 1
    packed: tuple[str, ...] | None = None
    """Names of the instances that training knows; None takes those of the packed store, or all folders."""

    @tell_user
    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        from mnif_nerf.data.readers.srn_layout import locate, scene_folders
        from mnif_nerf.data.stores.scene_store import packed_names, scene_placement

        layout, reading = locate(self.config.data), self.config.reading
        folders = scene_folders(layout.folder("train")[1])
        # What packing leaves out is not shown either; before anything is packed nobody knows of it.
        packed = self.packed or packed_names(self.config.data, "train", reading)
        folders = [folder for folder in folders if packed is None or folder.name in packed] or folders
        names = tuple(folder.name for folder in folders)
        shown = choose_scene(names, self.config.scene)
        placement = scene_placement(layout, reading)
        if any(name in layout.splits for name in HELD_OUT_SPLITS):
            if split != "train":
                others = {folder.name: folder for folder in scene_folders(layout.folder("train_val")[1])}
                folder = others.get(names[shown])
            else:
                folder = folders[shown]
            scene = self._read(folder or folders[shown])
            picked = np.arange(len(scene.poses) if folder else 0)
        else:
            scene = self._read(folders[shown])
            held = heldout_positions(len(scene.poses), self.config.heldout_views_per_scene)
            picked = np.setdiff1d(np.arange(len(scene.poses)), held) if split == "train" else held
        cameras = make_cameras(
            placement.apply(scene.poses[picked]) if reading.scale == "auto" else scene.poses[picked],
            scene.lenses[picked],
            scene.height,
            scene.width,
            np.full(len(picked), shown),
        )
        paths = [scene.image_paths[int(view)] for view in picked]
        return make_outputs(paths, cameras, names, shown)

    def _read(self, folder: Path) -> Scene:
        from mnif_nerf.data.readers.srn import read_scene

        scene = read_scene(folder, reading=self.config.reading)
        assert scene is not None
        return scene


def make_cameras(
    poses: np.ndarray, intrinsics: np.ndarray, height: int, width: int, scenes: Sequence[int] | np.ndarray
) -> Cameras:
    """nerfstudio cameras from OpenCV ones.

    Args:
        poses: `[V, 4, 4]` camera-to-world, OpenCV (x right, y down, z forward).
        intrinsics: `[V, 3]` focal, cx, cy in pixels.
        height, width: of the images.
        scenes: `[V]` scene indices, which travel as `metadata["scene_idx"]` `[V, 1]`.
    """
    c2w = torch.from_numpy(np.array(poses[:, :3], dtype=np.float32))
    c2w[:, :, 1:3] *= -1  # OpenGL: y up, z backward
    focal, cx, cy = torch.from_numpy(np.array(intrinsics, dtype=np.float32)).T
    return Cameras(
        camera_to_worlds=c2w,
        fx=focal,
        fy=focal.clone(),
        cx=cx,
        cy=cy,
        width=width,
        height=height,
        camera_type=CameraType.PERSPECTIVE,
        metadata={"scene_idx": torch.as_tensor(np.asarray(scenes), dtype=torch.long).view(-1, 1)},
    )


def make_outputs(paths: list[Path], cameras: Cameras, names: tuple[str, ...], shown: int) -> DataparserOutputs:
    """Outputs over a white background, with what the model must know of the whole set in `metadata`."""
    corner = torch.full((3,), HALF_EXTENT)
    return DataparserOutputs(
        image_filenames=paths,
        cameras=cameras,
        alpha_color=torch.ones(3),
        scene_box=SceneBox(aabb=torch.stack([-corner, corner])),
        metadata={"num_scenes": len(names), "scene_names": names, "shown_scene": shown},
    )


srn_dataparser = DataParserSpecification(
    config=SrnDataParserConfig(),
    description="One scene of a data set in the SRN layout (cars, chairs, your own).",
)
