"""The picture and the page at the end of a demo: truth, reconstructions, samples and an interpolation."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnif_nerf.files import atomic_file
from mnif_nerf.machine import in_threads

if TYPE_CHECKING:
    from mnif_nerf.objects.base import NeuralObject
    from mnif_nerf.pipelines.generation import MNIFPipeline

_SIZE = 128
_ACROSS = 8


@dataclass
class Overview:
    """Labelled rows of pictures, and sentences that say how good they are."""

    rows: dict[str, list[Any]]
    scores: list[str]


@dataclass(frozen=True)
class PageSamples:
    """Which samples the page shows."""

    count: int
    seed: int


def make_page(pipe: MNIFPipeline, data: Path, output: Path, samples: PageSamples) -> Path:
    """Write `overview.png` and `index.html`.

    Args:
        pipe: the trained model.
        data: what it was trained on, with unseen instances or views.
        output: the demo's folder, where the samples' video and meshes are.
        samples: which are shown.

    Returns:
        the page.
    """
    from mnif_nerf.export.pictures import comparison_rows, save_png

    kind = pipe.model.kind
    overview = (_instance_rows if kind.by_instance else _radiance_rows)(pipe, data)
    _add_samples(overview, pipe, samples)
    save_png(comparison_rows(overview.rows), output / "overview.png")
    print("\n".join(overview.scores))
    return _write_page(output, kind.demo.title, overview.scores)


def _add_samples(overview: Overview, pipe: MNIFPipeline, wanted: PageSamples) -> None:
    from PIL import ImageOps

    from mnif_nerf.export.pictures import image_grid

    kind = pipe.model.kind
    samples, columns = pipe(num_samples=wanted.count, seed=wanted.seed), kind.demo.across
    if columns > 1:  # several in the place of one, with a gap between
        framed = [ImageOps.expand(kind.portrait(item, _SIZE // columns - 4), 2, "white") for item in samples]
        pictures = [image_grid(framed[k : k + columns**2], columns) for k in range(0, len(framed), columns**2)]
    else:
        pictures = list(in_threads(kind.portrait, samples, repeat(_SIZE)))
    for first in range(0, len(pictures), _ACROSS):
        name = "Samples of the latent prior: none of these existed before" if first == 0 else f"more samples, {first}"
        overview.rows[name] = pictures[first : first + _ACROSS]
    ends = (samples[0], samples[min(1, len(samples) - 1)])
    path = pipe.interpolate(*ends, num=_ACROSS)
    overview.rows["From the first sample to the second"] = list(in_threads(kind.portrait, path, repeat(_SIZE)))


# ------------------------------------------------------------------------------------------------------- radiance


def _radiance_rows(pipe: MNIFPipeline, data: Path) -> Overview:
    """A held-out view of some training cars, the model's render of it, and the mean PSNR over all cars."""
    import torch

    from mnif_nerf.data.sampling.views import evenly_spaced
    from mnif_nerf.data.stores.scene_store import open_store
    from mnif_nerf.metrics.images import psnr
    from mnif_nerf.objects.stored_views import render_view

    shown = evenly_spaced(len(pipe.names), _ACROSS).tolist()
    store = open_store(data, "train_val", progress=False)
    truth, rebuilt, scores = [], [], []
    for instance, name in enumerate(pipe.names):
        scene, car = store.names.index(name), pipe.instance(name)
        first, last = store.view_range(scene)
        for view in range(first, last):
            picture = torch.from_numpy(store.images[view].copy()).float() / 255
            render = render_view(car, store.poses[view], store.intrinsics[view], (store.height, store.width))
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


# ------------------------------------------------------------------------------------- voxels, images and meshes


def _instance_rows(pipe: MNIFPipeline, data: Path) -> Overview:
    """Training and unseen instances beside their reconstructions, with scores."""
    from mnif_nerf.data.sampling.views import evenly_spaced
    from mnif_nerf.export.pictures import enlarge

    overview, kind = Overview({}, []), pipe.model.kind
    for split, words in (("train", f"Training {kind.demo.nouns}"), ("test", f"Unseen {kind.demo.nouns}")):
        store = _open(pipe, data, split)
        chosen = evenly_spaced(store.num_instances, kind.demo.num_scored).tolist()
        values = [store.values(instance) for instance in chosen]
        # Latents of unseen ones are found; those of the training instances are in the model.
        names = [store.names[instance] for instance in chosen]
        objects = [pipe.instance(name) for name in names] if split == "train" else _found(pipe, store, chosen, names)
        score = _mean_score(list(in_threads(kind.reconstruction_scores, objects, values, repeat(None))))
        shown = evenly_spaced(len(chosen), _ACROSS).tolist()
        own = in_threads(kind.beside_data, [objects[i] for i in shown], repeat(_SIZE))
        known = in_threads(kind.picture_of_data, [values[i] for i in shown], repeat(_SIZE))
        overview.rows[words] = [enlarge(each, _SIZE) for each in known]
        overview.rows[f"{words} from their latents ({score} over {len(chosen)})"] = [
            enlarge(each, _SIZE) for each in own
        ]
        if not kind.has_views:
            finer = [kind.portrait(objects[i], _SIZE) for i in shown]
            overview.rows[f"{words}: the same fields at {_SIZE} x {_SIZE} pixels"] = finer
        overview.scores.append(f"{words}, reconstructed: {score} over {len(chosen)}.")
    return overview


def _open(pipe: MNIFPipeline, data: Path, split: str) -> Any:
    if pipe.model.kind.has_points:
        from mnif_nerf.data.stores.surface_store import open_surface_store

        return open_surface_store(data, split)
    from mnif_nerf.data.stores.grid_store import open_grid_store

    return open_grid_store(data, split, pipe.model.modality, progress=False)


def _found(pipe: MNIFPipeline, store: Any, chosen: list[int], names: list[str]) -> list[NeuralObject]:
    """Objects of instances that the model was not trained on."""
    import torch

    from mnif_nerf.pipelines.encoding import encode_instances

    latents = encode_instances(pipe.model, store, torch.tensor(chosen))
    return [pipe.decode(latent, name) for latent, name in zip(latents, names)]


def _mean_score(scores: list[dict[str, float]]) -> str:
    """The mean of the first metric, and of colours on a surface, as words."""
    metric = next(iter(scores[0]))
    mean = sum(each[metric] for each in scores) / len(scores)
    words = f"{mean:.1f} dB" if metric == "psnr" else f"{metric.replace('iou', 'IoU')} {mean:.3f}"
    if "color" in scores[0]:
        words += f", colour {sum(each['color'] for each in scores) / len(scores):.1f} dB"
    return words


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
