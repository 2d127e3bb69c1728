"""Stage 1 (context adaptation, section 3.3 of the paper): field and latents learned from reconstruction error.

`Stage1Model` is what is learned, `Stage1Trainer` the loop. Neither knows where batches come from, or nerfstudio.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mnif_nerf.fields import kernel
from mnif_nerf.latents.model import Stage1Model
from mnif_nerf.latents.optimizers import OptimizerGroups
from mnif_nerf.latents.pacing import Pacer
from mnif_nerf.latents.ranks import ONE, Ranks
from mnif_nerf.latents.recording import CudaGraphs, Recorder
from mnif_nerf.latents.replay import Replays
from mnif_nerf.latents.steps import BatchSource, StepResult
from mnif_nerf.latents.watch import TrainingWatch
from mnif_nerf.machine import ThreadTuner, denormals_flushed, threads_are_given
from mnif_nerf.random import stream


class Stage1Trainer:
    """The training loop of stage 1.

    Args:
        model: what is learned; it stays on its device.
        source: source of the batches.
        optimizers: optimizers of the model's `parameter_groups`.
        seed: random seed of jitter and noise.
        encode_batch: instances whose latents are computed together (meta-learning), which bounds the memory.
        warn: called with a sentence where training goes wrong, see `TrainingWatch`.
        ranks: the processes that train together, each of which the source gives its share of a batch.

    Attributes:
        pacer: plans the length of a run that has to end in time; None where the number of steps is given.
    """

    def __init__(
        self,
        model: Stage1Model,
        source: BatchSource,
        optimizers: OptimizerGroups,
        seed: int = 0,
        encode_batch: int = 32,
        warn: Callable[[str], None] = print,
        ranks: Ranks = ONE,
    ) -> None:
        self.model, self.source, self.optimizers, self.ranks = model, source, optimizers, ranks
        self.seed, self.encode_batch, self.watch = seed, encode_batch, TrainingWatch(warn)
        self._stale = False  # whether computed latents are older than the networks
        self._tuner: ThreadTuner | None = None
        self._replays: Replays | None = None
        self.pacer: Pacer | None = None

    def replay(self, say: Callable[[str], None] = print, recorder: Recorder | None = None) -> None:
        """On CUDA, record a step and play it from now on, where that can be done; a sentence says where it cannot.

        Args:
            say: prints a line.
            recorder: another one than that of CUDA's graphs, for any device.
        """
        device = next(self.model.parameters()).device
        if recorder is None and device.type != "cuda":
            return
        self._replays = Replays(self, recorder or CudaGraphs(device), say)

    @property
    def plays(self) -> bool:
        """Whether steps are played, or will be after the first few."""
        return self._replays is not None

    def play_no_more(self) -> None:
        """Launch every operation of every step from now on."""
        self._replays = None

    def step(self, step: int) -> StepResult:
        """Take one training step; it depends on the parameters, the seed and the step alone.

        Raises:
            MNIFError: training or the inner loop diverged, or another rank has ended.
        """
        return self.steps(step, 1)

    @denormals_flushed()
    def steps(self, first: int, count: int) -> StepResult:
        """Take `count` steps from `first` on; what the last one yields. Raises as `step` does."""
        start = time.perf_counter()
        if self._replays is None:
            for step in range(first, first + count):
                result = self.plain_step(step)
                self._check(step, result.loss)
        else:
            result = self._replayed(self._replays, first, count)
        took = time.perf_counter() - start
        if self._tuner is not None:
            self._tuner.step_took(took)
        if self.pacer is not None:
            self.pacer.step_took(first + count - 1, took, count)
        return result

    def _replayed(self, replays: Replays, first: int, count: int) -> StepResult:
        played = replays.playing
        result, total = replays.steps(first, count)
        self._stale = True
        self.model.version += 1
        self._check(first + count - 1, total, count)
        if replays.given_up:
            self.play_no_more()
        if self.pacer is not None:
            replays.wait()  # or a clock would tell how fast steps are begun
            if replays.playing and not played:
                self.pacer.forget()
        return result

    def _check(self, step: int, loss: Tensor, count: int = 1) -> None:
        if not self.watch.loss(step, loss, count):
            self.model.require_finite(step)

    def plain_step(self, step: int) -> StepResult:
        """A step, one operation at a time; nobody looks at its loss."""
        self.optimizers.zero_grad()
        outputs = self.losses(step)
        functools.reduce(torch.add, outputs["losses"].values()).backward()
        losses, metrics = self.of_whole_batch(outputs)
        loss = functools.reduce(torch.add, losses.values())
        self.optimizers.step()
        return StepResult(loss, losses, metrics)

    def of_whole_batch(self, outputs: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses and metrics of all ranks' parts together, and the gradients likewise; once in every step, whichever
        way that is taken, so that ranks meet."""
        losses = {name: value.detach() for name, value in outputs["losses"].items()}
        metrics = {name: value for name, value in outputs.items() if name == "psnr"}
        if self.ranks.size == 1:
            return losses, metrics
        errors = {name: torch.pow(10.0, -0.1 * value) for name, value in metrics.items()}  # decibels have no mean
        parameters = [each for group in self.optimizers.parameters.values() for each in group]
        means = self.ranks.average(parameters, {**losses, **errors})
        return {name: means[name] for name in losses}, {name: -10.0 * torch.log10(means[name]) for name in errors}

    def losses(self, step: int) -> dict[str, Any]:
        """The losses of a step, with their graph; see `Stage1Task.losses`."""
        self._stale = True
        batch, seed = self.source.draw(step), stream(self.seed, "jitter", step)
        self.look(step, batch)
        return self.model(batch, seed)  # type: ignore[no-any-return]

    def look(self, step: int, batch: Any = None) -> None:
        """Watch latents or the inner loop, where that is due before this step, at its batch."""
        if not self.watch.due(step):
            return
        batch, model = self.source.draw(step) if batch is None else batch, self.model
        objective = model.objective(batch, stream(self.seed, "jitter", step))
        if model.meta is None:
            visits = step * self.ranks.size * len(batch.instances) / len(model.names)
            self.watch.latents(step, objective, model.latents(batch.instances).detach(), visits)
        else:
            self.watch.inner_loop(step, objective, model.inner_rates().detach(), len(batch.instances), model.meta)

    def turn(self, step: int, last: int, stops: Sequence[int] = ()) -> int:
        """How many steps to take at a time from `step` on: 1, unless steps are played.

        Args:
            step: the first of them.
            last: the end of the run, where no pacer plans it; that step is not taken.
            stops: numbers; a step that one of them divides is the last of its turn, as something is due after it.
        """
        if self._replays is None:
            return 1
        end = last if self.pacer is None else self.pacer.steps or sys.maxsize
        due = [-step % every + 1 for every in stops if every > 0]
        return max(min(self._replays.most, self.watch.left, end - step, *due), 1)

    def train(
        self,
        first: int,
        last: int,
        on_step: Callable[[int, StepResult], None] | None = None,
        stops: Sequence[int] | None = None,
    ) -> None:
        """Take the steps `first` to `last - 1`, or as many as the pacer plans.

        Args:
            first, last: see above.
            on_step: called after each step; given `stops`, at the end of every turn.
            stops: see `turn`.
        """
        step, complete = first, self.pacer is None and first >= last
        while not complete:
            count = self.turn(step, last, stops or ()) if on_step is None or stops is not None else 1
            result = self.steps(step, count)
            step += count
            if on_step is not None:
                on_step(step - 1, result)
            complete = step >= last if self.pacer is None else self.pacer.over(step - 1)

    def choose_threads(self, threads: int = 0, say: Callable[[str], None] = print) -> int | None:
        """Set the threads of CPU training: `threads`, or, for 0, the faster setting of a few timed steps.

        Found by timing, it is found again where the machine becomes busy or idle, see `ThreadTuner`.

        Args:
            threads: how many; 0 chooses.
            say: prints a line where a number was found by timing.

        Returns:
            the number that was found by timing; None where nothing was timed.
        """
        self._tuner = None
        if next(self.model.parameters()).device.type != "cpu":
            return None
        if threads > 0:
            torch.set_num_threads(threads)
            kernel.set_num_threads(threads)
            return None
        if threads_are_given():
            return None
        batch = self.source.draw(0)
        self._tuner = ThreadTuner(lambda: self._gradient(batch), say)
        return self._tuner.choose()

    @denormals_flushed()
    def _gradient(self, batch: Any) -> None:
        """What most of a step's time goes into, without any effect."""
        torch.stack(list(self.model(batch, stream(self.seed, "jitter", 0))["losses"].values())).sum().backward()
        self.model.zero_grad(set_to_none=True)

    def seconds_of_step(self, repeats: int = 7) -> float:
        """About how long a step takes just now, in seconds, by a few losses and gradients that change nothing: played
        where steps are, else their median."""
        played = None if self._replays is None else self._replays.seconds_of_gradient()
        if played is not None:
            return played
        times = []
        for step in range(repeats):
            start = time.perf_counter()
            self._gradient(self.source.draw(step))
            times.append(time.perf_counter() - start)
        return sorted(times[2:])[(repeats - 2) // 2]  # the first ones set up caches

    @torch.no_grad()
    def refresh_latents(self, instances: Sequence[int] | None = None) -> None:
        """After meta-learning steps: compute the training instances' latents of the networks as they are now.

        Args:
            instances: these only; all where None, and then every rank has to come here, as each computes some.

        Raises:
            MNIFError: the inner loop diverged.
        """
        table = self.model.latents.weight
        if self.model.meta is None or not self._stale:
            return
        rows = torch.arange(len(table)) if instances is None else torch.as_tensor(instances, dtype=torch.long)
        was_training = self.model.training
        self.model.eval()
        try:
            codes = self._encoded(rows) if instances is not None else self.ranks.compute_rows(rows, self._encoded)
        finally:
            self.model.train(was_training)
        table[rows.to(table.device)] = codes
        self._stale = instances is not None

    def _encoded(self, rows: Tensor) -> Tensor:
        return self.model.encode(
            lambda chosen: self.model.objective(self.source.fixed(chosen)), rows, self.encode_batch
        )
