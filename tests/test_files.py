"""Files that are whole or absent, and what a full disk says."""

from __future__ import annotations

import ast
import errno
import importlib
import io
import json
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_model import tiny_model

from mnif_nerf import files
from mnif_nerf.cli.fit import FitOptions
from mnif_nerf.errors import MNIFError, flag_paths, run_command, with_flags
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.files import atomic_file, atomic_folder, read_json, write_json
from mnif_nerf.latents.search import SearchConfig
from mnif_nerf.objects.base import NeuralObject
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.methods import METHODS
from mnif_nerf.pipelines.model_folder import read_model, write_model
from mnif_nerf.priors.prior import LatentPrior
from mnif_nerf.priors.training import PriorConfig
from mnif_nerf.tensor_files import read_tensors, write_tensors


class StopError(Exception):
    pass


def write_half(path: Path, error: type[BaseException]) -> None:
    path.write_text("half")
    raise error


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    with atomic_file(target) as temporary:
        temporary.write_text("first")
        assert temporary.suffix == ".txt"
        assert not target.exists()
    for error in (StopError, KeyboardInterrupt):
        with pytest.raises(error), atomic_file(target) as temporary:
            write_half(temporary, error)
    assert target.read_text() == "first"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]
    assert target.stat().st_mode & 0o044, "others may read it"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with atomic_folder(target) as temporary:
        (temporary / "a").write_text("first")
    with pytest.raises(MNIFError, match="exists already"), atomic_folder(target):
        pass
    with pytest.raises(StopError), atomic_folder(target, replace=True) as temporary:
        write_half(temporary / "b", StopError)
    assert [path.name for path in target.iterdir()] == ["a"]
    with atomic_folder(target, replace=True) as temporary:
        (temporary / "b").write_text("second")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_whose_replacement_fails_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "folder"
    with atomic_folder(target) as temporary:
        (temporary / "a").write_text("first")
    monkeypatch.setattr(files, "_exchange_names", lambda first, second: False)
    replace = os.replace

    def interrupted(source: Path, destination: Path) -> None:
        if destination == target and str(source).endswith(".tmp"):
            raise KeyboardInterrupt
        replace(source, destination)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_folder(target, replace=True):
        pass
    assert [path.name for path in target.iterdir()] == ["a"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o027])
def test_the_umask_is_obeyed_and_never_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int) -> None:
    """It belongs to the whole process: a thread that sets it for a moment can leave it at 0 for all."""
    set_umask = os.umask

    def slow(value: int) -> int:
        before = set_umask(value)
        time.sleep(0.002)
        return before

    def write(number: int) -> None:
        with atomic_file(tmp_path / f"{number}.txt") as temporary:
            temporary.write_text("a")
        with atomic_folder(tmp_path / f"{number}") as temporary:
            pass

    before = set_umask(mask)
    try:
        monkeypatch.setattr(os, "umask", slow)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(24)))
        assert set_umask(mask) == mask
    finally:
        set_umask(before)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
    ],
)
def test_disk_errors_are_one_sentence(tmp_path: Path, code: int, words: str) -> None:
    with pytest.raises(MNIFError, match=f"a.txt: .*{words}") as caught, atomic_file(tmp_path / "a.txt"):
        raise OSError(code, "as the system says it")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_other_system_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="odd"), atomic_file(tmp_path / "a.txt"):
        raise OSError(errno.EIO, "odd")


def test_json_round_trip(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2.5, None]}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(MNIFError, match="not valid JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(MNIFError, match="no such file"):
        read_json(tmp_path / "b.json")


def test_tensors_round_trip(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4).T, "b": torch.arange(5, dtype=torch.uint8).requires_grad_(False)}
    write_tensors(tmp_path / "a.safetensors", tensors, {"about": "a test"})
    read, metadata = read_tensors(tmp_path / "a.safetensors")
    assert metadata == {"about": "a test"}
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], value) for name, value in tensors.items())
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-3])
    with pytest.raises(MNIFError, match=r"a\.safetensors: not a readable .*; fetch it again\.$"):
        read_tensors(tmp_path / "a.safetensors", "fetch it again")
    with pytest.raises(MNIFError, match="no such file; write it again"):
        read_tensors(tmp_path / "b.safetensors")


def test_a_changed_byte_in_a_file_of_tensors_is_noticed(tmp_path: Path) -> None:
    path, tensors = tmp_path / "a.safetensors", {"weights": torch.randn(3, 4), "biases": torch.zeros(5)}
    write_tensors(path, tensors, {"about": "a test", "more": "b", "key": "c"})
    whole = path.read_bytes()
    write_tensors(path, tensors, {"key": "c", "more": "b", "about": "a test"})
    read_tensors(path)
    for place in (whole.index(b"weights"), whole.index(b"a test"), len(whole) - 60, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(MNIFError, match=r"a\.safetensors: is damaged \(its content .*\); fetch it again\.$"):
            read_tensors(path, "fetch it again")
    save_file(tensors, path)  # as other programs and older versions write them
    assert read_tensors(path)[0].keys() == tensors.keys()


@pytest.mark.parametrize("entry", ["layers", "final_sine", "object"])
@pytest.mark.parametrize("value", [None, "{", "[]"])
def test_what_a_stored_network_lacks_is_told(tmp_path: Path, entry: str, value: str | None) -> None:
    item = MNIFPipeline(tiny_model()).instance(0)
    path, kind = tmp_path / "stored.safetensors", NeuralObject if entry == "object" else CompactField
    (item if entry == "object" else item.field).save(path)
    tensors, metadata = read_tensors(path)
    metadata.pop(entry) if value is None else metadata.update({entry: value})
    if entry == "final_sine" and value == "[]":
        del tensors["weights.0"]
    write_tensors(path, tensors, metadata)
    with pytest.raises(MNIFError, match=rf"stored\.safetensors: .*; write one with {kind.__name__}\.save\.$"):
        kind.load(path)


def rewrite_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = read_json(path)
    change(content)
    write_json(path, content)


def test_files_gain_keys_with_defaults_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    """A setting that is added tomorrow must leave today's files readable."""
    prior = LatentPrior.fit(torch.randn(8, 4), PriorConfig(steps=2, width=8, blocks=1), progress=False)
    prior.save(tmp_path / "prior")
    about, expected = tmp_path / "prior" / "prior.json", prior.sample(2)
    older = ("dropout", "time_features")  # both at their defaults
    rewrite_json(about, lambda content: [content["denoiser"].pop(key) for key in older])
    rewrite_json(about, lambda content: [content.pop("whitening"), content["training"].pop("calibrate")])
    rewrite_json(about, lambda content: content["report"].pop("gaussian_loss"))
    assert torch.equal(LatentPrior.load(tmp_path / "prior").sample(2), expected)
    for part in ("denoiser", "training", "report", None):
        whole = about.read_bytes()
        rewrite_json(about, lambda content, part=part: (content[part] if part else content).update(novel=1))
        with pytest.raises(MNIFError, match="unknown 'novel'"):
            LatentPrior.load(tmp_path / "prior")
        about.write_bytes(whole)
    rewrite_json(about, lambda content: content["denoiser"].pop("dim"))
    with pytest.raises(MNIFError, match="lacks 'dim'"):
        LatentPrior.load(tmp_path / "prior")


def test_models_and_objects_gain_keys_with_defaults_too(tmp_path: Path) -> None:
    config = write_model(tiny_model(), tmp_path / "model") / "config.json"
    older = ("half_extent", "camera", "training", "versions", "modality", "adaptation", "grid")
    rewrite_json(config, lambda content: [content.pop(key) for key in older])
    assert read_model(config.parent).half_extent == 0.5
    rewrite_json(config, lambda content: content.update(novel=1))
    with pytest.raises(MNIFError, match=r"config\.json: unknown 'novel'"):
        read_model(config.parent)

    item, path = MNIFPipeline(tiny_model()).instance(0), tmp_path / "object.safetensors"
    item.save(path)
    tensors, metadata = read_tensors(path)
    about = json.loads(metadata["object"])
    for key in ("name", "half_extent", "camera", "modality", "head"):
        del about[key]
    write_tensors(path, tensors, {**metadata, "object": json.dumps(about)})
    assert NeuralObject.load(path).name == "object"
    write_tensors(path, tensors, {**metadata, "object": json.dumps({**about, "novel": 1})})
    with pytest.raises(MNIFError, match="unknown 'novel'"):
        NeuralObject.load(path)
    item.field.save(path)
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, {**metadata, "novel": "1"})
    with pytest.raises(MNIFError, match="unknown 'novel'"):
        CompactField.load(path)


def test_a_full_disk_while_a_model_is_written_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tiny_model(seed=0), tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    whole = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        whole(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    item = MNIFPipeline(tiny_model()).instance(0)
    writers = (
        lambda: write_model(tiny_model(seed=1), folder),
        lambda: item.save(tmp_path / "object.safetensors"),
        lambda: item.field.save(tmp_path / "field.safetensors"),
        lambda: item.mesh(16).export(tmp_path / "object.glb"),
    )
    for write in writers:
        with pytest.raises(MNIFError, match="the disk is full") as caught:
            write()
        assert ".tmp" not in str(caught.value), "the user's own name is told, not a temporary one"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_commands_end_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> None:
        raise error

    for error, code, words in (
        (MNIFError("cars: no such folder."), 1, "error: cars: no such folder.\n"),
        (KeyboardInterrupt(), 130, "interrupted: "),
    ):
        with pytest.raises(SystemExit) as stopped:
            run_command(lambda error=error: fail(error))
        assert stopped.value.code == code
        assert capsys.readouterr().err.startswith(words)
    with pytest.raises(io.UnsupportedOperation):  # a bug keeps its traceback
        run_command(lambda: fail(io.UnsupportedOperation()))


@dataclass
class Inner:
    deep_name: int = 0
    both: int = 0


@dataclass
class Outer:
    num_samples: int = 1
    both: int = 0
    inner: Inner = field(default_factory=Inner)
    optimizers: dict[str, Any] = field(default_factory=lambda: {"fields": {"lr": 1.0}, "latents": {"lr": 1.0}})


def test_arguments_in_errors_become_the_options_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    paths = flag_paths(Outer())
    for text, told in (
        ("`num_samples` is 0; ask for at least 1.", "--num-samples is 0; ask for at least 1."),
        ("`deep_name` and `both`", "--inner.deep-name and --both"),
        ("`inner.both`", "--inner.both"),
        ("`latents.lr` of `nothing`", "--optimizers.latents.lr of nothing"),
        ("`other`", "--num-samples"),
    ):
        assert with_flags(text, paths, {"other": "num_samples"}) == told
    for file in Path(files.__file__).with_name("cli").glob("*.py"):
        module = importlib.import_module(f"mnif_nerf.cli.{file.stem}")
        for name, kind in vars(module).items():
            if name.endswith("Options") and is_dataclass(kind):
                assert flag_paths(kind)
    with pytest.raises(SystemExit):
        run_command(lambda: SearchConfig(steps=0), [FitOptions])
    assert capsys.readouterr().err.startswith("error: --steps is 0, ")


def test_training_commands_tell_nested_options() -> None:
    paths = flag_paths(*(method.new_run() for method in METHODS.values()))
    assert with_flags("`inner_lr`", paths) == "--pipeline.inner-lr"
    assert with_flags("`instances_per_step`", paths) == "--pipeline.datamanager.instances-per-step"
    assert with_flags("`latents.lr`", paths) == "--optimizers.latents.optimizer.lr"


def test_errors_below_the_commands_name_arguments_and_no_options() -> None:
    """Commands as remedies stay: they are what a person types."""
    package, adapters = Path(files.__file__).parent, ("cli", "models", "training")
    option = re.compile(r"(?<![\w`-])--[a-z{]")
    wrong = []
    for file in package.rglob("*.py"):
        if set(adapters) & set(file.relative_to(package).parts):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
                continue
            if ast.unparse(node.exc.func) == "MNIFError":
                text = ast.unparse(node)
                if option.search(text) and not re.search("mnif-|ns-train", text):
                    wrong.append(f"{file}:{node.lineno}")
    assert wrong == []
