"""What is going on right now: steps of training, and conversations within the present rollout.

On a terminal two bars move: the outer one counts steps (mean reward, loss, tokens per second, time left), the inner
one counts conversations of a phase (`rollout`, `validation`, or an evaluation under its policy's name). Anywhere else
(a file, a CI log) nothing moves: each step and each finished phase leaves one plain line.

`Progress` knows nothing of Lightning, so that `train.py` and `evaluate.py` can show what they play outside of `fit`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

import lightning as L
import rich.progress
from rich.console import Console
from torch import Tensor

from collab.conversation import Group

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
            speed_estimate_period=3600,  # seconds; steps may take minutes each, and the default of 30 sees none then
        )
        self._steps = self._bars.add_task("step", total=None, visible=False, note="")
        self._phase = self._bars.add_task("", total=None, visible=False, note="")
        self._phase_started = time.monotonic()

    @property
    def animated(self) -> bool:
        return not self._bars.disable

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def steps(self, total: int | None, completed: int = 0, name: str = "step") -> None:
        """Start the outer bar at `completed` of `total` steps, called `name` (None: nobody knows how many)."""
        self._bars.reset(self._steps, total=total, completed=completed, description=name, visible=True, note="")

    def step(self, number: int, seconds: float, **fields: Value) -> None:
        """Step `number`, counted from 1, is done: it took `seconds` and gave `fields`, shown in their order."""
        note = _note(fields)
        self._bars.update(self._steps, completed=number, note=note)
        if not self.animated:
            task = self._bars.tasks[self._steps]
            total = "?" if task.total is None else int(task.total)
            self._line(f"{task.description} {number}/{total}", note, seconds)

    def phase(self, name: str, total: int | None) -> None:
        """Start the inner bar anew: `total` conversations of the phase `name` are about to be played."""
        self._bars.reset(self._phase, total=total, description=name, visible=True, note="")
        self._phase_started = time.monotonic()

    def advance(self, n: int = 1, **fields: Value) -> None:
        """`n` more conversations of this phase are finished."""
        self._bars.advance(self._phase, n)
        if fields:
            self.update(**fields)

    def update(self, **fields: Value) -> None:
        """Show `fields` beside the inner bar, in place of what was there."""
        self._bars.update(self._phase, note=_note(fields))

    def done(self, played: int | None = None, **fields: Value) -> None:
        """The phase is over: its bar goes, and one line stays with its count, `fields` and seconds.

        `played` is the count, over all processes; without it, what this one has shown as finished.
        """
        task = self._bars.tasks[self._phase]
        count = f"{int(task.completed) if played is None else played} conversations"
        self._bars.update(self._phase, visible=False)
        self._line(task.description, "  ".join(filter(None, (count, _note(fields)))), self._elapsed())

    def note(self, text: str) -> None:
        """A line that the user should read."""
        self.console.print(f"note: {text}", markup=False, highlight=False, soft_wrap=True)

    def spent(self, lines: Iterable[str]) -> None:
        """What hosted models have cost, a line each."""
        for line in lines:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _elapsed(self) -> float:
        return time.monotonic() - self._phase_started

    def _line(self, head: str, note: str, seconds: float) -> None:
        line = "  ".join(filter(None, (head, note, f"{seconds:.0f} s")))
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _note(fields: dict[str, Value]) -> str:
    return "  ".join(f"{name} {_text(value)}" for name, value in fields.items() if value is not None)


def _text(value: Value) -> str:
    if isinstance(value, Tensor):
        value = value.item()
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def sampled_tokens(groups: Iterable[Group]) -> int:
    """Policy tokens that were sampled for `groups`; a history that several futures share counts once."""
    count = 0
    for group in groups:
        count += sum(len(turn.reply.token_ids) for turn in group.context.turns)
        for candidate in group.candidates:
            count += len(candidate.reply.token_ids)
            count += sum(
                len(turn.reply.token_ids) for future in candidate.futures for turn in future.turns[group.context.turn :]
            )
    return count


class RolloutProgress(L.Callback):
    """Drives a `Progress` from Lightning's hooks; build the trainer with `enable_progress_bar=False`.

    It has to stand before the rollout callback in the trainer's list, so that a phase is open when its first
    conversation ends. The rollout itself reports each finished conversation by `progress.advance`.

    Args:
        progress: The display, entered by whoever owns the run.
        conversations_per_step: Conversations that this process plays for one training batch; 0 where it learns from
            earlier ones.
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

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begun = False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._begun:  # only the first batch tells where a resumed run takes up
            total = trainer.num_training_batches
            self.progress.steps(int(total) if total != float("inf") else None, completed=batch_idx)
            self._begun = True
        self._step_started = time.monotonic()
        if self.conversations_per_step:
            self.progress.phase("rollout", self.conversations_per_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        seconds = time.monotonic() - self._step_started
        fields = self._metrics(trainer, "train")
        if self.conversations_per_step and (tokens := sampled_tokens(batch.groups)):  # none over HTTP
            fields["tokens/s"] = round(tokens / seconds)
        self.progress.step(batch_idx + 1, seconds, **fields)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.progress.phase("validation", -(-self.conversations_per_validation // trainer.world_size))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.progress.done(self.conversations_per_validation, **self._metrics(trainer, "val"))

    def _metrics(self, trainer: L.Trainer, prefix: str) -> dict[str, Value]:
        return {name: trainer.callback_metrics.get(f"{prefix}/{name}") for name in self.shown}
