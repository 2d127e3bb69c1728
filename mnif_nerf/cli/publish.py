"""mnif-publish: a model folder for others, with a card that says what it is; on the hub, when asked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnif_nerf.cli.generation_common import default_output, load_pipeline
from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.limits import require_options
from mnif_nerf.progress import progress_bar

if TYPE_CHECKING:
    from mnif_nerf.pipelines.generation import MNIFPipeline

_SAMPLES = "samples.png"


@dataclass
class PublishOptions:
    """Write a model folder to share: safetensors and JSON, a model card (README.md), pictures, metrics.

    Only what is asked for leaves this machine: without --push nothing is uploaded.
    """

    load_config: str
    """The run's config.yml, the run folder or a model folder."""
    output: Path | None = None
    """Folder to write to; by default <run>/published/<data's name>."""
    title: str | None = None
    """Heading of the card; by default the data's name."""
    about: str = ""
    """Sentences for the card, above all where the data comes from and what may be done with it."""
    license: str | None = None
    """The model's licence as the hub names it (mit, cc-by-4.0, ...); left out when not given."""
    metrics: Path | None = None
    """A metrics.json of mnif-eval; by default the newest one in <run>/evaluation that was measured of this model."""
    num_pictures: int = 12
    """Samples shown on the card; 0 for none."""
    seed: int = 0
    """Seed of these samples."""
    push: str | None = None
    """owner/name on the Hugging Face Hub to upload the folder to (log in first: hf auth login)."""
    private: bool = False
    """With --push: make a new repository private."""
    device: str | None = None
    """cpu or cuda; by default CUDA where there is one."""


def main(options: PublishOptions) -> Path:
    """Run the command; returns the published folder.

    Raises:
        MNIFError: no model, a folder that holds something else, metrics of another model, a repository name that the
            hub does not take, or an upload that fails.
    """
    from mnif_nerf.pipelines.publish.model_card import CardOptions
    from mnif_nerf.pipelines.publish.publishing import publish, upload

    _check(options)
    pipe = load_pipeline(options.load_config, options.device)
    found = _metrics(options, pipe)
    name = pipe.model.data_name
    output = options.output or default_output(options.load_config, "published", name)
    _check_place(output, pipe)
    sheet = _pictures(options, pipe)
    card = CardOptions(
        title=options.title or f"mNIF of {name}",
        repo_id=options.push or output.name,
        license=options.license,
        about=options.about,
        metrics=None if found is None else found[1],
    )
    pictures = {} if sheet is None else {_SAMPLES: (f"Samples of seed {options.seed}, not chosen", sheet)}
    folder = publish(pipe.model, output, card, pictures)
    _say(options, folder, None if found is None else found[0])
    if options.push is not None:
        print(f"uploaded to {upload(folder, options.push, options.private)}")
        print(f'next: MNIFPipeline.from_pretrained("{options.push}") on any machine')
    return folder


def _check(options: PublishOptions) -> None:
    if options.num_pictures < 0:
        raise MNIFError(f"--num-pictures {options.num_pictures} is below 0; use 0 for none.")
    require_options(options, num_pictures=1000)
    if options.private and options.push is None:
        raise MNIFError("--private is about a repository on the hub; add --push owner/name.")
    if options.push is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", options.push):
        raise MNIFError(f"--push {options.push}: not a repository's name; give owner/name.")


def _check_place(output: Path, pipe: MNIFPipeline) -> None:
    """Refuse to publish a model into itself or another one, whose folder would then hold what no model has."""
    from mnif_nerf.pipelines.model_folder import require_outside_models

    if pipe.folder is not None and output.resolve() == pipe.folder.resolve():
        raise MNIFError(f"--output {output}: is the model itself; choose another folder.")
    require_outside_models(output.resolve().parent)


def _metrics(options: PublishOptions, pipe: MNIFPipeline) -> tuple[Path, dict[str, Any]] | None:
    """The metrics of this very model and their file, or None."""
    from mnif_nerf.pipelines.model_folder import locate_model

    if options.metrics is not None:
        return options.metrics, _read_metrics(options.metrics, pipe)
    place = Path(options.load_config)
    if not place.exists():
        return None
    run = locate_model(place).parent
    files = sorted(run.glob("evaluation/*/metrics.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files:
        try:
            return path, _read_metrics(path, pipe)
        except MNIFError as error:
            print(f"note: not used: {error}")
    return None


def _read_metrics(path: Path, pipe: MNIFPipeline) -> dict[str, Any]:
    from mnif_nerf.evaluation.cache import digest_of_model
    from mnif_nerf.files import read_json
    from mnif_nerf.pipelines.publish.model_card import METRICS_FORMAT

    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != METRICS_FORMAT:
        raise MNIFError(f"{path}: not the metrics.json of an evaluation; measure with mnif-eval.")
    if not all(isinstance(content.get(part), dict) for part in ("model", "protocol", "data", "reconstruction")):
        raise MNIFError(f"{path}: incomplete; measure again with mnif-eval.")
    if content.get("model", {}).get("digest") != digest_of_model(pipe.model):
        raise MNIFError(f"{path}: measured of another model than this one; run mnif-eval again.")
    return content


def _pictures(options: PublishOptions, pipe: MNIFPipeline) -> Any:
    """A sheet of samples, as they come; None where there is no prior to draw them from."""
    if options.num_pictures == 0 or pipe.prior is None:
        return None
    from mnif_nerf.export.pictures import enlarge, image_grid

    objects, pictures = pipe(options.num_pictures, options.seed), []
    with progress_bar("rendering samples", len(objects)) as advance:
        for item in objects:
            pictures.append(enlarge(item.picture(192 if pipe.model.kind.has_views else 64), 96))
            advance()
    return image_grid(pictures, columns=min(6, len(pictures)))


def _say(options: PublishOptions, folder: Path, metrics: Path | None) -> None:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"wrote {folder} ({size / 1e6:.1f} MB): model, README.md" + ("" if metrics is None else ", metrics.json"))
    if metrics is None:
        print("note: no metrics on the card; mnif-eval measures some, then run this again.")
    else:
        print(f"metrics: {metrics}")
    if options.license is None:
        print("note: the card names no licence; --license mit (or another) says what others may do with the model.")
    if options.push is None:
        print(f"next: read {folder / 'README.md'}, then mnif-publish ... --push owner/name, or copy the folder")


def entrypoint() -> None:
    """The console script."""
    import tyro

    run_command(lambda: main(tyro.cli(PublishOptions)), [PublishOptions])


if __name__ == "__main__":
    entrypoint()
