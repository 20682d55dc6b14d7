"""Plays whole conversations with several policies on the same goals and compares them in a table.

All rows have the same goals, user randomness, limits and sampling. `collab evaluate --help` has the command line.
Imports that need torch are inside functions.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from collab.app.resume import CONFIG, JOURNAL, RESULTS, STATE, RunState, at_work
from collab.config.endpoints import policy_endpoint
from collab.config.policies import HostedPolicy, named_policies, policy_model, row_name, system_prompt
from collab.config.schema import Config, ModelConfig, ShardedUserConfig
from collab.config.tasks import further_tasks
from collab.reports.conditions import FULL, conditions_table, summarise_conditions
from collab.reports.merge import read_results
from collab.reports.problems import add_problems
from collab.reports.report import write_report
from collab.reports.results import PolicyScores, summarise_rows, user_of
from collab.reports.tables import results_table
from collab.reports.transfer import transfer_markdown, transfer_table
from collab.util.errors import first_line
from collab.util.files import write_json
from collab.util.processes import connected, rank
from collab.util.targets import load_target

if TYPE_CHECKING:
    import lightning as L

    from collab.callbacks.progress import Progress
    from collab.chat.base import ChatModel
    from collab.chat.endpoints import Endpoints
    from collab.conversation import Conversation, Scored
    from collab.datamodules.base import GoalDataModule

TRANSFER = "transfer.md"  # the table of several tasks
_LINE = 160  # characters of a message that the terminal shows


def evaluate(config: Config) -> None:
    """Play the test goals with every policy of `config.policies` and every user; write what the run leaves behind."""
    from collab.app import build
    from collab.app.loggers import log_results
    from collab.app.wandb_mode import offline_note
    from collab.callbacks.progress import Progress

    with (
        at_work(config, "evaluate") as run,
        Progress(animate=config.callbacks.progress_bar, rank=rank(), watch=config.callbacks.watch) as progress,
        build.endpoints(config, progress) as endpoints,
    ):
        build.start(config)
        progress.say(build.describe(config))
        if note := offline_note(config):
            progress.note(note)
        further = further_tasks(config)
        expect_rows(config, list(named_policies(config.policies)), progress, run)
        for one in further.values():
            if not (Path(one.output_dir) / RESULTS).is_file():
                expect_rows(one, list(named_policies(one.policies)), progress, _run_of(one))
        play_policies(config, progress, endpoints, run)
        others = {name: play_task(one, progress, endpoints) for name, one in further.items()}
        progress.say(*endpoints.ledger.table())
        if rank() == 0:  # before the results, which end the run
            log_results(config, run, results_of(config, run))
        report(config, run, progress, others)
    write_page(config, progress)


def play_policies(config: Config, progress: Progress, endpoints: Endpoints, run: RunState) -> None:
    """Play the test goals with every policy of `config.policies` and every user.

    Args:
        config, progress, endpoints, run: As in `play_row`.
    """
    for name, row in named_policies(config.policies).items():
        play_rows(config, name, row, progress, endpoints, run)
    compare_pairs(config, run, progress, endpoints)


def play_task(config: Config, progress: Progress, endpoints: Endpoints) -> dict[str, Any]:
    """Play a task of `evaluation.tasks` in a folder of its own, which is like that of any evaluation.

    Args:
        config: Of `further_tasks`.
        progress, endpoints: As in `play_row`.

    Returns:
        Its results, from its folder if it was played before an interruption.
    """
    folder = Path(config.output_dir)
    if (folder / RESULTS).is_file():
        progress.say(f"{config.task.name}: played before")
        return read_results(folder / RESULTS)
    run = _run_of(config)
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.structured(config), folder / CONFIG)
        run.write()
    progress.say(f"{config.task.name}: in {folder}")
    play_policies(config, progress, endpoints, run)
    results = results_of(config, run)
    if rank() == 0:
        write_results(folder, results)
    write_page(config, progress)
    return results


def _run_of(config: Config) -> RunState:
    """The state of a further task."""
    folder = Path(config.output_dir)
    return RunState.read(folder) if (folder / STATE).is_file() else RunState(folder, "evaluate")


def expect_rows(config: Config, names: Sequence[str], progress: Progress, run: RunState) -> None:
    """Say how many conversations the rows of these policies still take, and how long those took that were played."""
    from collab.app import build

    per_row = len(build.data(config, run.entry).splits.test) * config.evaluation.num_conversations
    for row in (row_name(name, user) for name in names for user in ("", *config.evaluation.users)):
        if row in run.scores:
            progress.left.took("conversation", run.seconds[row], per_row)
        else:
            progress.left.expect("conversation", per_row)


def play_rows(
    config: Config,
    name: str,
    row: Path | HostedPolicy | None,
    progress: Progress,
    endpoints: Endpoints,
    run: RunState,
) -> None:
    """Play the test goals with one policy: with the config's user, then with each of `evaluation.users`.

    What the run has the scores of already is not played again. The policy is loaded once for all users.

    Args:
        config: The checked config.
        name: Of the policy. `proactive` gets the proactive instruction, every other policy the usual one.
        row: Folder of the policy, or the server that plays it; None for the model of the config.
        progress, endpoints, run: As in `play_row`.
    """
    from collab.app import build

    goals = build.data(config, run.entry)  # the same for all users
    policy: LoadedPolicy | None = None
    for user in ("", *config.evaluation.users):
        played = row_name(name, user)
        if played in run.scores:
            progress.say(f"{played}: played before")
            continue
        policy = policy or load_policy(config, row, endpoints)
        play_row(against(config, user), played, policy, goals, progress, endpoints, run)


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy that plays test goals.

    Attributes:
        module: Reads its weights when it first plays, and keeps them.
        model: Of these weights; None for a server.
        tokenizer: Of these weights; None for a server.
        hosted: The server.
    """

    module: L.LightningModule
    model: ModelConfig | None = None
    tokenizer: Any = None
    hosted: ChatModel | None = None


def load_policy(config: Config, row: Path | HostedPolicy | None, endpoints: Endpoints) -> LoadedPolicy:
    """The policy of a row: see `play_rows`."""
    from collab.app import build
    from collab.lm.loading import load_tokenizer
    from collab.modules.hosted import HostedPolicyModule

    if isinstance(row, HostedPolicy):
        return LoadedPolicy(HostedPolicyModule(), hosted=endpoints.model(policy_endpoint(config, row)))
    model = policy_model(config, row)
    tokenizer = load_tokenizer(model)
    module = build.module(config, model, tokenizer, adapter=False)
    module.needs_reference = False  # nothing is trained
    return LoadedPolicy(module, model, tokenizer)


def against(config: Config, user: str) -> Config:
    """The config with a user of `evaluation.users` in place of its own; "" changes nothing.

    Metrics that follow how many items the user gives in an answer follow the new one.
    """
    if not user:
        return config
    plays = config.evaluation.users[user]
    most = {"items_per_answer": getattr(plays, "items_per_answer", 2)}
    metrics = {
        name: replace(metric, options=metric.options | most if most.keys() <= metric.options.keys() else metric.options)
        for name, metric in config.task.metrics.items()
    }
    return replace(config, user=plays, task=replace(config.task, metrics=metrics))


def play_row(
    config: Config,
    name: str,
    policy: LoadedPolicy,
    data: GoalDataModule,
    progress: Progress,
    endpoints: Endpoints,
    run: RunState,
) -> None:
    """Play the test goals with one policy and one user, and write the transcripts.

    Args:
        config: The checked config, with this user.
        name: Of the row (`row_name`).
        policy: Plays the assistant.
        data: The goals.
        progress: Shows each finished conversation, and what was said in the first one of the first row.
        endpoints: The hosted models of the run.
        run: Gets the scores and the seconds of this row.
    """
    from collab.app import build
    from collab.callbacks.rollout import RolloutCallback
    from collab.callbacks.rollout_metrics import conversation_values, means
    from collab.callbacks.transcripts import TranscriptWriter

    started = time.monotonic()
    prompt = system_prompt(config.task, name.partition("@")[0])
    count = config.evaluation.num_conversations
    advance = endpoints.shown_by(progress.advance)
    simulation = build.simulation(config, endpoints, advance, policy.model, build.journal(config), progress)
    rollouts = RolloutCallback(simulation, prompt, count, policy.hosted, name)
    trainer = build.trainer(config, [], [rollouts])
    progress.phase(name, -(-len(data.splits.test) // trainer.world_size) * count, "R*")
    trainer.test(policy.module, datamodule=data, verbose=False)
    scored = _gathered(rollouts.tested)
    if trainer.is_global_zero:
        TranscriptWriter(config.output_dir, tokenizer=policy.tokenizer).write(scored, phase="test", policy=name)
    metrics = means(conversation_values(scored, parts=()))
    progress.done(len(scored), reward=metrics["reward"], tokens=metrics["assistant_tokens"])
    if not run.scores and not config.callbacks.watch:
        progress.say(*in_lines(scored[0][0], name))
    if line := add_problems(Path(config.output_dir), name, simulation.problems, rank()):
        progress.say(line)
    run.finish(name, time.monotonic() - started, policy_scores(scored))


def in_lines(conversation: Conversation, name: str) -> list[str]:
    """A conversation for the terminal, a line for each message; `name` is that of the policy."""
    said = ((who, text) for turn in conversation.turns for who, text in (("user", turn.user), (name, turn.reply.text)))
    return [f"  {who}: {textwrap.shorten(text, _LINE, placeholder=' ...')}" for who, text in said]


def compare_pairs(config: Config, run: RunState, progress: Progress, endpoints: Endpoints) -> None:
    """Let the evaluator compare each row's conversations with the baseline's, and add its verdicts to the row's scores.

    It reads `transcripts.jsonl`, which also has the rows that were played before an interruption. Rank 0 alone does it.
    """
    baseline = config.evaluation.baseline
    if rank() > 0 or "evaluator" in run.seconds or baseline not in run.scores:
        return
    from collab.app import build
    from collab.datamodules.goals import load_splits
    from collab.rewards.pairwise import win_rates

    judge = build.evaluator(config, endpoints)
    if judge is None:
        return
    started = time.monotonic()
    goals = {goal.id: goal for goal in load_splits(config.task).test}
    lines = (Path(config.output_dir) / "transcripts.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record["phase"] == "test"]
    played = {name: [record for record in records if record["policy"] == name] for name in run.scores}
    others = [name for name in run.scores if name.partition("@")[0] != baseline]
    progress.phase("evaluator", sum(len(played[name]) for name in others))
    advance = endpoints.shown_by(progress.advance)
    for name in others:
        base = played[row_name(baseline, user_of(name))]
        run.scores[name] |= asyncio.run(win_rates(judge, goals, played[name], base, advance))
    progress.done()
    run.finish("evaluator", time.monotonic() - started)


def report(
    config: Config, run: RunState, progress: Progress, others: Mapping[str, dict[str, Any]] | None = None
) -> None:
    """Write `results.json`, which ends the run, and print the table. Rank 0 alone does it.

    With results of `others`, further tasks, the table has all tasks. It is in `transfer.md` too, and the results of the
    tasks are in `results.json`.
    """
    if rank() > 0:
        return
    folder, results, others = Path(config.output_dir), results_of(config, run), others or {}
    if others:
        tasks = {config.task.name: results, **others}
        (folder / TRANSFER).write_text(transfer_markdown(tasks), encoding="utf-8")
        progress.console.print(transfer_table(tasks))
        kept = ("policies", "difference", "conditions")
        results["tasks"] = {name: {k: one[k] for k in kept if k in one} for name, one in others.items()}
    else:
        progress.console.print(results_table(results))
    write_results(folder, results)
    if conditions := results.get("conditions"):
        baseline, count = config.evaluation.baseline, config.evaluation.num_conversations
        progress.console.print("", conditions_table(conditions["reward"], baseline, count))


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write `results.json` and remove the journal, which no finished run needs."""
    write_json(folder / RESULTS, results)
    shutil.rmtree(folder / JOURNAL, ignore_errors=True)


def results_of(config: Config, run: RunState) -> dict[str, Any]:
    """What `results.json` holds, without further tasks."""
    aggregates = {
        name: load_target(target, f"task.aggregates.{name}", function=True)
        for name, target in config.task.aggregates.items()
    }
    results = {
        **summarise_rows(run.scores, baseline=config.evaluation.baseline, seed=config.seed, aggregates=aggregates),
        "config": asdict(config),
        "seconds": {**run.seconds, "total": run.elapsed()},
    }
    conditions = conditions_of(config, run)
    return results | ({"conditions": conditions} if conditions else {})


def conditions_of(config: Config, run: RunState) -> dict[str, Any]:
    """How each policy does under each condition, by R* and by each of its metrics; empty without the condition `full`.

    A condition has the name of its user in `evaluation.users`, or the way in which the config's own user tells goals.
    """
    users = config.evaluation.users | {"": config.user}
    told = {name: name or user.told for name, user in users.items() if isinstance(user, ShardedUserConfig)}
    rows = {row: scores for row, scores in run.scores.items() if user_of(row) in told}
    if FULL not in told.values():
        return {}
    metrics = ["reward", *(name for name, metric in config.task.metrics.items() if metric.weight)]
    summarise_one = partial(summarise_conditions, rows, told, baseline=config.evaluation.baseline, seed=config.seed)
    return {metric: summarise_one(metric=metric) for metric in metrics if any(metric in s for s in rows.values())}


def write_page(config: Config, progress: Progress) -> None:
    """Write the page of the finished run and print where it is. Rank 0 alone does it.

    The run has its results, so a page that cannot be written is a line in the terminal and no error.
    """
    if rank() > 0:
        return
    folder = Path(config.output_dir)
    try:
        told = write_report([folder]).resolve().as_uri()
    except (OSError, ValueError, LookupError) as error:  # BadInput is a ValueError
        told = f"not written ({type(error).__name__}: {first_line(error)}); `collab report {folder}` writes it again"
    progress.say(f"{'report':>15}: {told}")


def policy_scores(scored: Sequence[Scored]) -> PolicyScores:
    """Metric -> goal -> values of its conversations. The token penalty is left out, since the table has the tokens.

    Goals of one `pair` (`task=ask_or_act`) count as one goal, since intervals resample pairs.
    """
    from collab.callbacks.rollout_metrics import scores_of

    scores: PolicyScores = {}
    for (conversation, _), values in zip(scored, scores_of(scored), strict=True):
        for metric, value in values.items():
            if metric != "token_penalty":
                metadata = conversation.goal.metadata
                unit = metadata["pair"] if "vague" in metadata else conversation.goal.id
                scores.setdefault(metric, {}).setdefault(unit, []).append(value)
    return scores


def _gathered(scored: list[Scored]) -> list[Scored]:
    """The conversations of all ranks, rank by rank."""
    if not connected():
        return scored
    from torch import distributed

    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, scored)
    return [pair for part in parts for pair in part]
