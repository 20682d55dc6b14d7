"""Progress of a run: steps of training, and conversations within the current rollout.

On a terminal there are two bars. The outer one counts steps (mean reward, loss, tokens per second, time left), the
inner one counts the conversations of a phase (`rollout`, `validation`, or the name of a policy that is evaluated).
Elsewhere, as in a file or a CI log, each step and each finished phase leaves one plain line.

`Progress` does not depend on Lightning, so `train.py` and `evaluate.py` can also use it outside of `fit`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import lightning as L
import rich.progress
from rich.console import Console
from torch import Tensor

Value = float | int | str | Tensor | None


class Progress:
    """Two nested bars, or plain lines where there is no terminal. Use it as a context manager.

    Args:
        animate: False prints plain lines on a terminal too.
        rank: Global rank of this process; only rank 0 shows anything.
        console: Where to draw; standard output by default.
    """

    def __init__(self, animate: bool = True, rank: int = 0, console: Console | None = None) -> None:
        self.console = console or Console(quiet=rank > 0)
        self._bars = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(bar_width=20),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
            disable=not animate or not self.console.is_terminal or self.console.quiet,
            refresh_per_second=4,
            speed_estimate_period=3600,  # seconds; a step may take minutes, longer than the default of 30 seconds
        )
        self._steps = self._bars.add_task("step", total=None, visible=False, note="")
        self._phase = self._bars.add_task("", total=None, visible=False, note="")
        self._phase_started = time.monotonic()

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, *lines: str) -> None:
        """Print lines above the bars as they are, neither wrapped nor coloured."""
        for line in lines:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a line that the user should read."""
        self.say(f"note: {text}")

    def steps(self, total: int, completed: int = 0, name: str = "step") -> None:
        """Start the outer bar at `completed` of `total` steps; `name` says what a step is."""
        self._bars.reset(self._steps, total=total, completed=completed, description=name, visible=True, note="")

    def step(self, number: int, seconds: float, **fields: Value) -> None:
        """Step `number`, counted from 1, took `seconds`; `fields` are shown in their order, without None."""
        note = _note(fields)
        self._bars.update(self._steps, completed=number, note=note)
        if self._bars.disable:
            task = self._bars.tasks[self._steps]
            self._line(f"{task.description} {number}/{task.total:.0f}", note, seconds)

    def phase(self, name: str, total: int | None) -> None:
        """Start the inner bar anew, for `total` conversations; None if the number is not known."""
        self._bars.reset(self._phase, total=total, description=name, visible=True, note="")
        self._phase_started = time.monotonic()

    def advance(self, n: int = 1, **fields: Value) -> None:
        """`n` more conversations of the phase are finished; `fields`, if any, replace those beside the bar."""
        self._bars.advance(self._phase, n)
        if fields:
            self._bars.update(self._phase, note=_note(fields))

    def done(self, played: int | None = None, **fields: Value) -> None:
        """Replace the inner bar by a line with the number of conversations, `fields`, and the seconds.

        Args:
            played: Conversations of all processes; by default those that this process advanced by.
            **fields: Shown in their order, without None.
        """
        task = self._bars.tasks[self._phase]
        self._bars.update(self._phase, visible=False)
        note = f"{int(task.completed) if played is None else played} conversations  {_note(fields)}".rstrip()
        self._line(task.description, note, time.monotonic() - self._phase_started)

    def _line(self, head: str, note: str, seconds: float) -> None:
        self.say("  ".join(filter(None, (head, note, f"{seconds:.0f} s"))))


def _note(fields: dict[str, Value]) -> str:
    return "  ".join(f"{name} {_text(value)}" for name, value in fields.items() if value is not None)


def _text(value: Value) -> str:
    if isinstance(value, Tensor):
        value = value.item()
    return f"{value:.3f}" if isinstance(value, float) else str(value)


class RolloutProgress(L.Callback):
    """Shows steps, rollouts and validations; build the trainer with `enable_progress_bar=False`.

    In the trainer's list it comes before the rollout callback: a phase has to start before its first conversation ends.
    The rollout calls `progress.advance` for each finished conversation.

    Args:
        progress: The display. The caller enters it.
        conversations_per_step: Conversations that this process plays for one training batch; 0 with stored data.
        conversations_per_validation: Conversations of one validation, over all processes.
        shown: Metrics beside the bars, without their `train/` or `val/`.
    """

    def __init__(
        self,
        progress: Progress,
        conversations_per_step: int,
        conversations_per_validation: int,
        shown: Sequence[str] = ("mr", "reward", "loss"),
    ) -> None:
        self.progress = progress
        self.conversations_per_step = conversations_per_step
        self.conversations_per_validation = conversations_per_validation
        self.shown = tuple(shown)
        self._begun = False
        self._step_started = 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._begun:  # only the first batch of a resumed run has its number
            self.progress.steps(int(trainer.num_training_batches), completed=batch_idx)
            self._begun = True
        self._step_started = time.monotonic()
        if self.conversations_per_step:
            self.progress.phase("rollout", self.conversations_per_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        fields = self._metrics(trainer, "train")
        if (speed := trainer.callback_metrics.get("train/rollout_tokens_per_s")) is not None:
            fields["tokens/s"] = round(float(speed))
        self.progress.step(batch_idx + 1, time.monotonic() - self._step_started, **fields)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.progress.phase("validation", -(-self.conversations_per_validation // trainer.world_size))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.progress.done(self.conversations_per_validation, **self._metrics(trainer, "val"))

    def _metrics(self, trainer: L.Trainer, prefix: str) -> dict[str, Value]:
        return {name: trainer.callback_metrics.get(f"{prefix}/{name}") for name in self.shown}
