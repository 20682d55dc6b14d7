"""Progress of a run: steps of training, and conversations within the current rollout.

On a terminal there are two bars. The outer one counts steps and says how long the whole run will still take. The inner
one counts the conversations of a phase (`rollout`, `validation`, or the name of a policy that is evaluated): how many
are under way, MR so far, tokens per second. Each step and each finished phase leaves one plain line, there and
elsewhere, as in a file or a CI log, which has nothing but these lines.

`Progress` does not depend on Lightning, so `train.py` and `evaluate.py` can also use it outside of `fit`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from statistics import fmean
from types import TracebackType
from typing import Any

import lightning as L
import rich.progress
from rich.console import Console
from rich.table import Column
from torch import Tensor

from collab.callbacks.spoken import Spoken
from collab.conversation import Conversation
from collab.randomness import RngKey
from collab.simulation.conversation_loop import Observer

Value = float | int | str | Tensor | None

STEP = {  # what the line of a step or a validation shows -> its metric, without `train/` or `val/`
    "MR": "mr",
    "R*": "reward",
    "interactivity": "interactivity",
    "pertinent": "pertinent",
    "tokens": "assistant_tokens",
    "KL": "kl",
}
STORED = STEP | {"loss": "loss"}  # with stored data, which has no MR


class TimeLeft:
    """How long a run will still take, by what its parts have taken so far.

    A part is one of a kind: "step" of training, or "conversation" of a test or a validation.
    """

    def __init__(self) -> None:
        self.units: dict[str, float] = {}  # kind -> how many are still to do
        self._took: dict[str, deque[tuple[float, float]]] = {}  # kind -> seconds and number, of the latest

    def expect(self, kind: str, units: float) -> None:
        """So many more of a kind are to do."""
        self.units[kind] = self.units.get(kind, 0) + units

    def took(self, kind: str, seconds: float, units: float = 1) -> None:
        """So many of a kind took `seconds`."""
        self._took.setdefault(kind, deque(maxlen=8)).append((seconds, units))

    def done(self, kind: str, seconds: float, units: float = 1) -> None:
        """As `took`, of those that were to do."""
        self.took(kind, seconds, units)
        self.units[kind] = max(0.0, self.units.get(kind, 0) - units)

    def seconds(self) -> float | None:
        """None while something is to do of which nothing has been measured, and when nothing is to do."""
        todo = {kind: units for kind, units in self.units.items() if units}
        if not todo or not todo.keys() <= self._took.keys():
            return None
        return sum(units * self._of_one(kind) for kind, units in todo.items())

    def _of_one(self, kind: str) -> float:
        return sum(seconds for seconds, _ in self._took[kind]) / sum(units for _, units in self._took[kind])

    def __str__(self) -> str:
        """`about 12 min left`; empty if unknown."""
        if (seconds := self.seconds()) is None:
            return ""
        minutes = round(seconds / 60)
        if minutes < 2:
            return f"about {seconds:.0f} s left"
        return f"about {minutes // 60} h {minutes % 60} min left" if minutes >= 60 else f"about {minutes} min left"


class Progress(Observer):
    """Two nested bars, or plain lines where there is no terminal. Use it as a context manager.

    Args:
        animate: False prints plain lines on a terminal too.
        rank: Global rank of this process; only rank 0 shows anything.
        console: Where to draw; standard output by default.
        watch: Print one conversation of each rollout and of each row of a test as it is spoken.

    Attributes:
        left: How long the run will still take. Who calls `steps` and `phase` says what is to do.
    """

    def __init__(
        self, animate: bool = True, rank: int = 0, console: Console | None = None, watch: bool = False
    ) -> None:
        self.console = console or Console(quiet=rank > 0)
        self._bars = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(bar_width=12),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            # Without a width of its own, a long note would take that of the bars.
            rich.progress.TextColumn(
                "{task.fields[note]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
            ),
            expand=True,
            transient=True,  # the lines say all of it
            console=self.console,
            disable=not animate or not self.console.is_terminal or self.console.quiet,
            refresh_per_second=4,
        )
        self._steps = self._bars.add_task("step", total=None, visible=False, note="")
        self._phase = self._bars.add_task("", total=None, visible=False, note="")
        self.left = TimeLeft()
        self._spoken = Spoken(self.say) if watch and rank == 0 else None
        self._under_way = 0  # conversations; with `rollout.max_staleness` some began in an earlier phase
        self._begin_phase("")

    def _begin_phase(self, measure: str) -> None:
        self._measure, self._phase_started = measure, time.monotonic()
        self._tokens = 0
        self._rewards: list[float] = []
        self._beside = ""  # what `advance` wants shown

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
        """Start the outer bar at `completed` of `total` steps; `name` says what a step is.

        Steps of training count in `left`. So each has a line on a terminal too; of others there may be thousands.
        """
        if name == "step":
            self.left.units["step"] = total - completed
        self._bars.reset(self._steps, total=total, completed=completed, description=name, visible=True, note="")

    def step(self, number: int, seconds: float, **fields: Value) -> None:
        """Step `number`, counted from 1, took `seconds`; `fields` are shown in their order, without None and nan."""
        note, task = _note(fields), self._bars.tasks[self._steps]
        trains = task.description == "step"
        if trains:
            self.left.done("step", seconds)
        self._bars.update(self._steps, completed=number, note=str(self.left) if trains else note)
        if trains or self._bars.disable:
            self._line(f"{task.description} {number}/{task.total:.0f}", note, seconds)

    def phase(self, name: str, total: int | None, measure: str = "") -> None:
        """Start the inner bar anew.

        Args:
            name: What is played.
            total: Number of conversations; None if it is not known.
            measure: "MR" of a rollout for training, "R*" of whole conversations, which count in `left`. The policy's
                speed is shown with it.
        """
        self._bars.reset(self._phase, total=total, description=name, visible=True, note="")
        self._begin_phase(measure)

    def advance(self, n: int = 1, **fields: Value) -> None:
        """`n` more conversations of the phase are finished; `fields`, if any, replace those beside the bar."""
        self._bars.advance(self._phase, n)
        if fields:
            self._beside = _note(fields)
        self._show()

    def done(self, played: int | None = None, **fields: Value) -> None:
        """Replace the inner bar by a line with the number of conversations, `fields`, and the seconds.

        Args:
            played: Conversations of all processes; by default those that this process advanced by.
            **fields: Shown in their order, without None.
        """
        task = self._bars.tasks[self._phase]
        self._bars.update(self._phase, visible=False)
        number, seconds = int(task.completed) if played is None else played, time.monotonic() - self._phase_started
        if self._measure == "R*" and number:
            self.left.done("conversation", seconds, number)
            self._bars.update(self._steps, note=str(self.left))
        self._line(task.description, f"{number} conversations  {_note(fields)}".rstrip(), seconds)

    def _line(self, head: str, note: str, seconds: float) -> None:
        self.say("  ".join(filter(None, (head, note, f"{seconds:.0f} s", str(self.left)))))

    # --- what the conversations of the phase tell ----------------------------------------------------------------

    def began(self) -> None:
        self._under_way += 1
        self._show()

    def ended(self) -> None:
        self._under_way -= 1
        self._show()

    def replied(self, tokens: int) -> None:
        self._tokens += tokens
        self._show()

    def scored(self, reward: float | None) -> None:
        if reward is not None:
            self._rewards.append(reward)
            self._show()

    def said(self, conversation: Conversation, key: RngKey) -> None:
        if self._spoken is not None:
            self._spoken.said(conversation, key)

    def valued(self, key: RngKey, name: str, value: float | None) -> None:
        if self._spoken is not None:
            self._spoken.valued(key, name, value)

    def _show(self) -> None:
        """The note of the inner bar."""
        if self._bars.disable:
            return
        shown = [self._beside]
        if self._measure:
            seconds = time.monotonic() - self._phase_started
            shown = [f"{self._under_way} under way", f"{self._tokens / max(seconds, 1):.0f} tokens/s", self._beside]
            if self._rewards:
                shown.insert(1, f"{self._measure} {fmean(self._rewards):.3f}")
        self._bars.update(self._phase, note="  ".join(filter(None, shown)))


def _note(fields: dict[str, Value]) -> str:
    """Without None and nan, which have nothing to say."""
    plain = {name: value.item() if isinstance(value, Tensor) else value for name, value in fields.items()}
    return "  ".join(f"{name} {_text(value)}" for name, value in plain.items() if value is not None and value == value)


def _text(value: float | int | str) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3f}"
    return str(value)


class RolloutProgress(L.Callback):
    """Shows steps, rollouts and validations; build the trainer with `enable_progress_bar=False`.

    In the trainer's list it comes before the rollout callback: a phase has to start before its first conversation ends.
    The rollout calls `progress.advance` for each finished conversation.

    Lines of a step have MR, or the loss with stored data.

    Args:
        progress: The display. The caller enters it.
        conversations_per_step: Conversations that this process plays for one training batch; 0 with stored data.
        conversations_per_validation: Conversations of one validation, over all processes.
        shown: Name on the line of a step or a validation -> its metric, without `train/` or `val/`.
    """

    def __init__(
        self,
        progress: Progress,
        conversations_per_step: int,
        conversations_per_validation: int,
        shown: Mapping[str, str] = STEP,
    ) -> None:
        self.progress = progress
        self.conversations_per_step = conversations_per_step
        self.conversations_per_validation = conversations_per_validation
        self.shown = shown
        self._begun = False
        self._step_started = 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._begun:  # only the first batch of a resumed run has its number
            total = int(trainer.num_training_batches)
            self.progress.steps(total, completed=batch_idx)
            if trainer.limit_val_batches and (every := trainer.val_check_batch):
                validations = total // every - batch_idx // every
                self.progress.left.expect("conversation", validations * self.conversations_per_validation)
            self._begun = True
        self._step_started = time.monotonic()
        if self.conversations_per_step:
            self.progress.phase("rollout", self.conversations_per_step, "MR")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.progress.step(batch_idx + 1, time.monotonic() - self._step_started, **self._metrics(trainer, "train"))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.progress.phase("validation", -(-self.conversations_per_validation // trainer.world_size), "R*")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.progress.done(self.conversations_per_validation, **self._metrics(trainer, "val"))

    def _metrics(self, trainer: L.Trainer, prefix: str) -> dict[str, Value]:
        return {name: trainer.callback_metrics.get(f"{prefix}/{metric}") for name, metric in self.shown.items()}
