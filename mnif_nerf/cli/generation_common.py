"""What the generation commands share: loading, which objects are meant, output folders, interrupts."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import tyro

from mnif_nerf.errors import MNIFError, disk_errors
from mnif_nerf.labels import GUIDANCE, Wish
from mnif_nerf.latents.rarity import TYPICAL
from mnif_nerf.limits import MOST_SAMPLES, require_memory, require_options
from mnif_nerf.names import file_name, quoted, shown
from mnif_nerf.progress import progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from mnif_nerf.metrics.integrity import Yardstick
    from mnif_nerf.pipelines.generation import MNIFPipeline, NeuralObject

_SHEETS = 4  # copies of a picture that are held while a sheet is made


LabelOption = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
"""Labels as attribute=value, each behind an option of its own."""


def label_wish(label: Sequence[str], guidance: float | None) -> Wish | None:
    """The label that a command's options ask for; None where they ask for none.

    Raises:
        MNIFError: something else than attribute=value, an attribute that is there twice, or a guidance that is out of
            range or guides to nothing.
    """
    found: dict[str, str] = {}
    for text in label:
        name, sign, value = (part.strip() for part in text.partition("="))
        if not (name and sign and value):
            raise MNIFError(f"--label {shown(text)}: expected attribute=value, such as --label species=oak.")
        if name in found:
            raise MNIFError(f"--label {shown(text)}: {shown(name)} is asked for as {shown(found[name])} already.")
        found[name] = value
    if guidance is not None and not found:
        raise MNIFError(f"--guidance {guidance:g} guides to a label; add --label, such as --label species=oak.")
    return Wish(found, GUIDANCE if guidance is None else guidance) if found else None


def label_names(label: Sequence[str], guidance: float | None) -> list[str]:
    """What a label and a guidance add to the name of what is written of them."""
    parts = [file_name(part.replace("=", "-"), 60) for part in label]
    return parts if guidance is None else [*parts, f"guidance{guidance:g}"]


def label_words(label: Sequence[str], guidance: float | None) -> str:
    """A label and a guidance as they are typed, for the command that is named next; nothing where there is none."""
    asked = "".join(f" --label {quoted(part)}" for part in label)
    return asked if guidance is None else f"{asked} --guidance {guidance:g}"


class ObjectSelection(Protocol):
    """The options of a command that say which objects of a model are meant."""

    @property
    def source(self) -> str:
        """samples, training or latent."""

    @property
    def num_samples(self) -> int:
        """How many samples, or training instances where none is named."""

    @property
    def instance(self) -> tuple[str, ...]:
        """Training instances, by name or number."""

    @property
    def latent_file(self) -> Path | None:
        """Where latents are read from."""

    @property
    def seed(self) -> int:
        """Random seed of the samples."""

    @property
    def sampler(self) -> str | None:
        """Sampler of the prior; None takes its own."""

    @property
    def steps(self) -> int | None:
        """Steps of the sampler; None takes its own number."""

    @property
    def temperature(self) -> float:
        """Temperature of the samples."""

    @property
    def typical(self) -> float:
        """How rare samples may be; 1 takes all."""

    @property
    def label(self) -> tuple[str, ...]:
        """What samples shall be, as attribute=value."""

    @property
    def guidance(self) -> float | None:
        """How strongly; None for the usual."""

    @property
    def redraw(self) -> int | None:
        """How often a sample that looks broken is drawn again; None for the usual."""


def load_pipeline(load_config: str, device: str | None) -> MNIFPipeline:
    """Load the model and set torch's threads as measured for rendering."""
    from mnif_nerf.machine import tune_threads
    from mnif_nerf.pipelines.generation import MNIFPipeline

    pipe = MNIFPipeline.from_pretrained(load_config, device)
    if pipe.latents.device.type == "cpu":
        probe = pipe.decode([0.0] * pipe.model.field.spec.latent_dim)
        tune_threads(lambda: probe.picture(64))
    return pipe


def check_choice(options: ObjectSelection) -> None:
    """Refuse options that do not go together, before anything is loaded.

    Raises:
        MNIFError: nothing asked for, or an option that belongs to another source.
    """
    if options.num_samples < 1:
        raise MNIFError(f"--num-samples {options.num_samples} leaves nothing to do; use at least 1.")
    if options.instance and options.source != "training":
        raise MNIFError("--instance names training instances; add --source training.")
    redraw = options.redraw or 0
    if redraw < 0 or (redraw and options.source != "samples"):
        raise MNIFError(f"--redraw {options.redraw}: only samples can be drawn again, 0 times or more.")
    if options.typical != TYPICAL and options.source != "samples":
        raise MNIFError("--typical is for samples; leave it or --source out.")
    if options.source == "latent" and options.latent_file is None:
        raise MNIFError("--source latent needs --latent-file (a latents.safetensors that mnif-sample wrote).")
    if options.latent_file is not None and options.source != "latent":
        raise MNIFError("--latent-file is only read with --source latent; add it.")
    if (options.label or options.guidance is not None) and options.source != "samples":
        raise MNIFError("--label and --guidance are for samples; leave them or --source out.")
    label_wish(options.label, options.guidance)
    require_options(options, num_samples=MOST_SAMPLES, smooth=1000, redraw=1000)


def chosen_objects(pipe: MNIFPipeline, options: ObjectSelection) -> list[NeuralObject]:
    """The objects that the options ask for.

    Raises:
        MNIFError: no prior, no such instance, or a latent file that is missing, damaged or of another model.
    """
    if options.source == "samples":
        return _drawn(pipe, options)
    if options.source == "latent":
        assert options.latent_file is not None
        return stored_objects(pipe, options.latent_file)
    chosen: list[str | int] = list(options.instance)
    # Without any instances the first is asked for too: the pipeline has the sentence.
    return [pipe.instance(name) for name in chosen or range(max(1, min(options.num_samples, len(pipe.names))))]


def _drawn(pipe: MNIFPipeline, options: ObjectSelection) -> list[NeuralObject]:
    """The samples that the options ask for, those of mnif-sample with the same options."""
    from mnif_nerf.pipelines.integrity import REDRAWS, Draw, draw_whole

    wish = label_wish(options.label, options.guidance)
    draw = Draw(options.seed, options.sampler, options.steps, options.temperature, options.typical, wish)
    redraw = REDRAWS if options.redraw is None else options.redraw
    yardstick = judging_yardstick(pipe, options.redraw) if redraw and pipe.prior is not None else None
    if yardstick is None:
        return draw.objects(pipe, options.num_samples)
    drawn = draw_whole(pipe, options.num_samples, draw, redraw, yardstick, progress_bar)
    again, broken = sum(map(bool, drawn.attempts)), sum(found.broken for found in drawn.judgements)
    if again:
        print(f"{again} of {options.num_samples} samples were drawn again; {broken} still look broken")
    return drawn.objects


def judging_yardstick(pipe: MNIFPipeline, redraw: int | None) -> Yardstick | None:
    """What samples are judged by, measured behind a bar where the model folder does not have it yet. None for a model
    that cannot be judged: few training instances, or, with a sentence, empty ones.

    Args:
        pipe: the model.
        redraw: how often the options ask for broken samples to be drawn again; None for the usual.

    Raises:
        MNIFError: it cannot be judged, and broken samples are asked to be drawn again.
    """
    from mnif_nerf.pipelines.integrity import FEWEST_INSTANCES, yardstick_of

    if len(pipe.names) < FEWEST_INSTANCES and not redraw:
        return None
    try:
        return yardstick_of(pipe, pipe.folder, progress_bar)
    except MNIFError as error:
        if redraw:
            raise
        print(f"Integrity is not judged: {error}")
        return None


def stored_objects(pipe: MNIFPipeline, path: Path) -> list[NeuralObject]:
    """The objects of a file of latents, or the one of `NeuralObject.save` (which need not have a latent).

    Raises:
        MNIFError: the file is missing, damaged, holds neither, or is of another model.
    """
    from mnif_nerf.objects.base import NeuralObject
    from mnif_nerf.pipelines.decoder import check_origin

    tensors, facts = _stored(path)
    if not _is_object(tensors):
        latents = _latents_of(tensors, path)
        return [pipe.decode(latent, name) for latent, name in zip(latents, _names_of(facts, path, len(latents)))]
    item = NeuralObject.load(path, pipe.latents.device)
    if item.modality != pipe.modality:
        raise MNIFError(f"{path}: an object of the modality {item.modality}, but the model is of {pipe.modality}.")
    check_origin(pipe.model.field, item)
    return [item]


def count_stored(path: Path) -> int:
    """How many objects `stored_objects` would give.

    Raises:
        MNIFError: the file is missing, damaged, or holds none.
    """
    tensors = _stored(path)[0]
    return 1 if _is_object(tensors) else len(_latents_of(tensors, path))


def _names_of(facts: dict[str, str], path: Path, count: int) -> list[str]:
    """Names that mnif-sample gave the latents of a file, or else the file's name with numbers."""
    try:
        names = json.loads(facts.get("names", ""))
    except ValueError:
        names = None
    if isinstance(names, list) and len(names) == count and all(isinstance(name, str) and name for name in names):
        return names
    return [f"{path.stem}{k:03d}" for k in range(count)]


def _stored(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from mnif_nerf.tensor_files import read_tensors

    return read_tensors(path, "mnif-sample writes latents.safetensors")


def _is_object(tensors: dict[str, Tensor]) -> bool:
    return any(name.startswith("field.") for name in tensors)


def read_latents(path: Path) -> Any:
    """Latents `[n, D]` from a safetensors file with "latents" [n, D] or "latent" [D].

    Raises:
        MNIFError: the file is missing, damaged, or holds neither.
    """
    return _latents_of(_stored(path)[0], path)


def _latents_of(tensors: dict[str, Tensor], path: Path) -> Tensor:
    found = tensors.get("latents", tensors.get("latent"))
    if found is None:
        raise MNIFError(f"{path}: holds neither latents nor latent; use a file of mnif-sample or NeuralObject.save.")
    if found.ndim not in (1, 2) or found.numel() == 0:
        raise MNIFError(f"{path}: latents of shape {list(found.shape)}, expected [n, D] or [D]; write the file again.")
    return found.reshape(-1, found.shape[-1]).float()


def choice_name(options: ObjectSelection) -> str:
    """A name for what is written of them."""
    if options.source == "samples":
        return "-".join([f"seed{options.seed}", *label_names(options.label, options.guidance)])
    return "training" if options.latent_file is None else f"latent-{file_name(options.latent_file.stem)}"


def default_output(load_config: str, kind: str, name: str) -> Path:
    """`<run>/<kind>/<name>` beside the model folder; under outputs/ for a model from the hub."""
    from mnif_nerf.pipelines.model_folder import locate_model

    path = Path(load_config)
    if not path.exists():
        return Path("outputs") / file_name(path.name) / kind / file_name(name)
    model = locate_model(path)
    run = model.parent if model.name == "model" else model
    return run / kind / file_name(name)


def made_before(report: Path, source: Path, **settings: int | None) -> bool:
    """Whether a command's report is newer than the model `source` and was made with these settings."""
    from mnif_nerf.files import read_record

    if not (report.is_file() and source.is_file() and report.stat().st_mtime >= source.stat().st_mtime):
        return False
    try:
        content = read_record(report)
    except MNIFError:
        return False  # it is made again
    used = content.get("settings", content)
    done = isinstance(used, dict) and all(used.get(name) == value for name, value in settings.items())
    if done:
        print(f"{report.parent}: made from this model already; remove it to make it again.")
    return done


def prepare_output(folder: Path) -> Path:
    """Make the output folder, before any long work.

    Raises:
        MNIFError: it is a file or a model, lies in a model, or cannot be written.
    """
    from mnif_nerf.pipelines.model_folder import require_outside_models

    require_outside_models(folder)
    if folder.exists() and not folder.is_dir():
        raise MNIFError(f"{folder}: is a file; choose a folder with --output.")
    with disk_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".write-test"
            probe.touch()
            probe.unlink()
        except NotADirectoryError:
            raise MNIFError(f"{folder}: part of this path is a file; choose another folder with --output.") from None
    return folder


def require_sheet(count: int, views: int, edge: int) -> None:
    """Refuse pictures of objects that the memory cannot hold: they all stand on one sheet.

    Args:
        count: objects.
        views: pictures of each.
        edge: pixels.

    Raises:
        MNIFError: with the size.
    """
    require_memory(
        3 * _SHEETS * count * views * edge**2,
        f"a sheet of {count:,} objects (`num_samples`), {views} of {edge} pixels each,",
        "ask for fewer, or a lower `resolution`",
    )


@contextlib.contextmanager
def held_interrupts() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back until the work says where it may come; yields the function that says so.

    An interrupt in the middle of anything can leave an encoder behind that is just being started, and some C code
    swallows it altogether. A second Ctrl-C is not held back. Where interrupts are ignored, and outside of the main
    thread, nothing is changed.
    """
    pressed = False

    def hold(*_: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    def checkpoint() -> None:
        if pressed:
            raise KeyboardInterrupt

    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # in the background of a script
    if ignored or threading.current_thread() is not threading.main_thread():
        yield checkpoint
        return
    before = signal.signal(signal.SIGINT, hold)
    try:
        yield checkpoint
    except Exception:
        # The terminal's Ctrl-C ends the encoder too, and then writing to it fails before the next checkpoint.
        checkpoint()
        raise
    finally:
        signal.signal(signal.SIGINT, before)
