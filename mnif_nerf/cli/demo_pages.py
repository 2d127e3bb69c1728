"""The picture and the page at the end of a demo: truth, reconstructions, samples and an interpolation."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnif_nerf.files import atomic_file

if TYPE_CHECKING:
    import numpy as np

    from mnif_nerf.cli.demo import DemoConfig
    from mnif_nerf.data.stores.grid_store import GridStore
    from mnif_nerf.pipelines.generation import MNIFPipeline, NeuralObject

_SIZE = 128
_ACROSS = 8
_ANGLES = (25.0, 40.0)  # elevation and azimuth, degrees
_RADIUS = 1.05  # voxels are looked at from nearer than the cameras of radiance fields, which leave a wide margin
_SCORED_TRAINING = {"voxel": 32, "image": 200}  # of unseen ones all are scored
_TITLES = {
    "radiance": "Cars that never existed",
    "voxel": "Car shapes that never existed",
    "image": "Digits that nobody wrote",
}


@dataclass
class Overview:
    """Labelled rows of pictures, and sentences that say how good they are."""

    rows: dict[str, list[Any]]
    scores: list[str]


def make_page(config: DemoConfig) -> Path:
    """Write `overview.png` and `index.html` into the demo's folder; returns the page."""
    from mnif_nerf.export.pictures import comparison_rows, save_png
    from mnif_nerf.pipelines.generation import MNIFPipeline

    pipe = MNIFPipeline.from_pretrained(config.run_folder())
    overview = _radiance_rows(config, pipe) if config.modality == "radiance" else _grid_rows(config, pipe)
    _add_samples(overview, config, pipe)
    output = config.output_folder()
    save_png(comparison_rows(overview.rows), output / "overview.png")
    print("\n".join(overview.scores))
    return _write_page(output, _TITLES[config.modality], overview.scores)


def _add_samples(overview: Overview, config: DemoConfig, pipe: MNIFPipeline) -> None:
    from PIL import ImageOps

    from mnif_nerf.export.pictures import image_grid

    samples = pipe(num_samples=config.samples(), seed=config.seed)
    if pipe.modality == "image":  # four in the place of one, with a gap between
        framed = [ImageOps.expand(_shown(item, _SIZE // 2 - 4), 2, "white") for item in samples]
        pictures = [image_grid(framed[k : k + 4], columns=2) for k in range(0, len(framed), 4)]
    else:
        pictures = [_shown(item) for item in samples]
    for first in range(0, len(pictures), _ACROSS):
        name = "Samples of the latent prior: none of these existed before" if first == 0 else f"more samples, {first}"
        overview.rows[name] = pictures[first : first + _ACROSS]
    ends = (samples[0], samples[min(1, len(samples) - 1)])
    path = pipe.interpolate(*ends, num=_ACROSS)
    overview.rows["From the first sample to the second"] = [_shown(item) for item in path]


def _shown(item: NeuralObject, size: int = _SIZE) -> Any:
    return item.render(*_ANGLES, size, _RADIUS if item.modality == "voxel" else None)


# ------------------------------------------------------------------------------------------------------- radiance


def _radiance_rows(config: DemoConfig, pipe: MNIFPipeline) -> Overview:
    """A held-out view of some training cars, the model's render of it, and the mean PSNR over all cars."""
    import torch

    from mnif_nerf.data.stores.scene_store import open_store
    from mnif_nerf.metrics.images import psnr
    from mnif_nerf.rendering.cameras import Intrinsics
    from mnif_nerf.rendering.views import render_view

    shown = _spread(len(pipe.names), _ACROSS)
    store = open_store(config.data_folder(), "train_val", progress=False)
    truth, rebuilt, scores = [], [], []
    for instance, name in enumerate(pipe.names):
        scene = store.names.index(name)
        focal, cx, cy = (float(v) for v in store.intrinsics[scene])
        camera = Intrinsics(focal, cx, cy, store.height, store.width)
        car = pipe.instance(name)
        first, last = store.view_range(scene)
        for view in range(first, last):
            picture = torch.from_numpy(store.images[view].copy()).float() / 255
            pose = torch.from_numpy(store.poses[view]).to(car.latent.device)
            render = render_view(car.field, pose, camera, car.grid)["rgb"].cpu()
            scores.append(float(psnr(render, picture)))
            if view == first and instance in shown:
                truth.append(_enlarged(picture))
                rebuilt.append(_enlarged(render))
    score = sum(scores) / len(scores)
    rows = {
        "Training cars, views held out from training": truth,
        f"The model's rendering of the same views ({score:.1f} dB over all training cars)": rebuilt,
    }
    return Overview(rows, [f"Held-out views of the training cars: {score:.1f} dB PSNR."])


def _enlarged(picture: Any) -> Any:
    from PIL import Image

    from mnif_nerf.export.pictures import to_image

    return to_image(picture).resize((_SIZE, _SIZE), Image.Resampling.BICUBIC)


# ---------------------------------------------------------------------------------------------- voxels and images


def _grid_rows(config: DemoConfig, pipe: MNIFPipeline) -> Overview:
    """Training and unseen instances beside their reconstructions, with scores."""
    from mnif_nerf.data.stores.grid_store import open_grid_store

    overview = Overview({}, [])
    what = {"voxel": "shapes", "image": "digits"}[config.modality]
    for split, words in (("train", f"Training {what}"), ("test", f"Unseen {what}")):
        store = open_grid_store(config.data_folder(), split, config.modality, progress=False)
        chosen = _spread(
            store.num_instances, _SCORED_TRAINING[pipe.modality] if split == "train" else store.num_instances
        )
        values = [store.values(instance) for instance in chosen]
        # Unseen ones go through the inner loop; the training instances' latents are in the model.
        objects = [pipe.instance(store.names[i]) for i in chosen] if split == "train" else pipe.encode(*values)
        score = _mean_scores(objects, values, pipe.modality)
        shown = _spread(len(chosen), _ACROSS)
        overview.rows[words] = [_truth(values[i], pipe.modality) for i in shown]
        overview.rows[f"{words} from their latents ({score} over {len(chosen)})"] = [
            _rebuilt(objects[i], store) for i in shown
        ]
        if pipe.modality == "image":
            overview.rows[f"{words}: the same fields at {_SIZE} x {_SIZE} pixels"] = [_shown(objects[i]) for i in shown]
        overview.scores.append(f"{words}, reconstructed: {score} over {len(chosen)}.")
    return overview


def _truth(values: np.ndarray, modality: str) -> Any:
    import torch

    from mnif_nerf.export.pictures import enlarge, to_image
    from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose
    from mnif_nerf.rendering.voxel_faces import render_cells

    if modality == "image":
        return enlarge(to_image(values), _SIZE)
    pose = orbit_pose(*_ANGLES, _RADIUS)
    return to_image(render_cells(torch.from_numpy(values), pose, Intrinsics.default(_SIZE)))


def _rebuilt(item: NeuralObject, store: GridStore) -> Any:
    from mnif_nerf.export.pictures import enlarge

    if item.modality == "image":
        return enlarge(item.render(resolution=store.resolution), _SIZE)
    return _shown(item)


def _mean_scores(objects: Sequence[NeuralObject], values: Sequence[np.ndarray], modality: str) -> str:
    """The metrics' means, as words."""
    import torch

    from mnif_nerf.metrics.grids import iou
    from mnif_nerf.metrics.images import psnr
    from mnif_nerf.rendering.plane import render_image

    if modality == "voxel":
        pairs = [(torch.from_numpy(o.occupancy(len(v))), torch.from_numpy(v)) for o, v in zip(objects, values)]
        each = [float(iou(rebuilt.flatten(), truth.flatten())) for rebuilt, truth in pairs]
        return f"IoU {sum(each) / len(each):.3f}"
    each = []
    for item, value in zip(objects, values):
        rebuilt = render_image(item.field, len(value)).cpu()
        each.append(float(psnr(rebuilt, torch.from_numpy(value).float() / 255)))
    return f"{sum(each) / len(each):.1f} dB"


def _spread(count: int, wanted: int) -> list[int]:
    """`wanted` indices from first to last."""
    wanted = min(count, wanted)
    return [round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)]


# ----------------------------------------------------------------------------------------------------------- page


def _write_page(output: Path, title: str, scores: list[str]) -> Path:
    videos = sorted((output / "samples").glob("[!.]*.mp4"))
    meshes = sorted((output / "meshes").glob("[!.]*.glb"))
    for video in videos[:1]:
        shutil.copyfile(video, output / "turntable.mp4")
    listed = "".join(f'<li><a href="meshes/{mesh.name}">{mesh.name}</a></li>' for mesh in meshes)
    turning = "<h2>Turntable of the samples</h2><video src='turntable.mp4' controls loop></video>" if videos else ""
    solid = f"<h2>Meshes (open in any 3D program)</h2><ul>{listed}</ul>" if meshes else ""
    page = output / "index.html"
    with atomic_file(page) as temporary:
        temporary.write_text(
            f"<!doctype html><meta charset='utf-8'><title>mnif_nerf demo: {title}</title>"
            "<style>body{font-family:sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}"
            "img,video{max-width:100%}</style>"
            f"<h1>{title}</h1>"
            + "".join(f"<p>{score}</p>" for score in scores)
            + "<img src='overview.png' alt='training data, reconstructions, samples and an interpolation'>"
            + turning
            + solid,
            encoding="utf-8",
        )
    return page
