"""Predicts a training step on a cluster (`cluster=`): its time, idle share, memory and cost, each with its arithmetic.

A step plays a rollout, then updates. Per process, with P parameters of b bytes each, B bytes/s and F operations/s:

- reading: tokens that are not in the cache of keys and values, 2 P / F each.
- decoding: `steps` times reading all weights (b P / B), and for each token 2 P / F and its keys and values (/ B).
  `steps` is the replies that follow each other, times the tokens of a reply, times `SPREAD`: the longest one counts.
- waiting: answers of the user and the judge that follow each other, `cluster.user_seconds` each.
- update: 2 P / F per token for each of forward, backward, recomputation, gradients of weights, reference.
- sync: bytes that processes send each other, over `cluster.link`, or over `cluster.network` between nodes.

B and F are those of the data sheet times the shares that are reached. With `cluster.rates` the same arithmetic is done
for the run there, and its measured times over the arithmetic's correct the prediction: one factor for rollouts, one for
updates. Validation, tests, checkpoints and the start are not counted.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from collab.app.estimate import REPLY, USER_MESSAGE, USER_REPLY, Estimate, judgements, llm_users
from collab.app.memory import CONTEXT, Setup, shape_of
from collab.app.resume import CONFIG
from collab.config.schema import ClusterConfig, Config, LLMJudgeConfig
from collab.conversation import guessed_tokens
from collab.simulation.schedule import candidates_at, context_turns
from collab.util.errors import BadInput, first_line

SPREAD = 2.0  # the longest of the replies that are decoded together over their mean; assumed
_METRICS = Path("csv") / "metrics.csv"


@dataclass(frozen=True)
class Rates:
    """What a run measured, medians over its steps.

    Attributes:
        reply: Tokens of a reply of the policy.
        rollout: Measured time of its rollouts over that of the arithmetic.
        update: The same for its updates.
        source: Where they come from, in words.
    """

    reply: float
    rollout: float
    update: float
    source: str


@dataclass(frozen=True)
class Step:
    """A predicted step; seconds of a process.

    Attributes:
        reading: Of prompts and messages.
        decoding: Of replies.
        waiting: For answers of users and judges.
        update: Of the policy.
        sync: Between processes.
        total: Of the whole step; less than their sum if rollouts overlap with updates.
        idle: Share of the step in which a training device waits for users, judges or the servers that decode.
        replies: That the policy writes in a step, over all processes.
        decoded: Tokens of them.
        trained: Tokens of the update, over all processes.
        longest: Tokens of the longest conversation.
        packed: Tokens of a forward and backward pass.
        why: Name of a figure -> its arithmetic.
    """

    reading: float
    decoding: float
    waiting: float
    update: float
    sync: float
    total: float
    idle: float
    replies: float
    decoded: float
    trained: float
    longest: float
    packed: float
    why: dict[str, str]


def devices(config: Any) -> int:
    """Processes of the run, over all nodes.

    Raises:
        BadInput: `trainer.devices` leaves it to the machine.
    """
    given = config.trainer.devices
    if isinstance(given, str) and not given.isdecimal():
        raise BadInput(
            f"trainer.devices ({given}) depends on the machine, and cluster={config.cluster.name} is another one. Set "
            "trainer.devices to the devices of a node, and trainer.num_nodes."
        )
    return (len(given) if isinstance(given, list) else int(given)) * config.trainer.num_nodes


def predict(config: Any, processes: int, cluster: ClusterConfig, rates: Rates | None = None) -> Step:
    """The step of a config on devices of `cluster`.

    Args:
        config: A `Config`, or what a run's `config.yaml` has.
        processes: That share a step.
        cluster: The devices.
        rates: Of a run.

    Raises:
        BadInput: A figure of the devices is missing; the run plays nothing; goals cannot be dealt; no server decodes
            with `engine=vllm`.
    """
    for name in ("memory_gb", "bandwidth", "tflops", "link", "network"):
        if not getattr(cluster, name):
            raise BadInput(
                f"cluster.{name} (0) must be above 0. Choose one of the clusters of `conf/cluster` (cluster=h100), or "
                f"set cluster.{name} from the data sheet."
            )
    task, sampler, trainer, algorithm = config.task, config.sampler, config.trainer, config.algorithm
    if algorithm.data is not None:
        raise BadInput(
            f"algorithm={algorithm.name} learns from stored conversations, and only a step that plays can be "
            "predicted. Set cluster=none, or choose grpo, rloo, ppo or online_dpo."
        )
    if trainer.goals_per_step % processes:
        raise BadInput(
            f"trainer.goals_per_step ({trainer.goals_per_step}) must be a multiple of the number of processes "
            f"({processes}). Set trainer.goals_per_step={math.ceil(trainer.goals_per_step / processes) * processes}."
        )
    local = getattr(config.engine, "base_url", None) is None
    if not local and not cluster.servers:
        raise BadInput("cluster.servers (0): with engine=vllm servers decode. Set it to their number.")
    shape, item = shape_of(config.model.path), 4 if config.precision == "fp32" else 2
    lora = config.model.lora
    p, trained_weights = shape.parameters, shape.adapter(lora.r) if lora.enabled else shape.parameters
    bandwidth = cluster.bandwidth * cluster.bandwidth_share * 1e9
    flops = cluster.tflops * cluster.flops_share * 1e12 * (1 if item == 2 else 0.5)
    slower = (rates.rollout, rates.update) if rates else (1.0, 1.0)
    why: dict[str, str] = {}

    # What is played, per process.
    reply = min(rates.reply if rates else REPLY, task.max_new_tokens)
    message = USER_REPLY if _hosted(config) else USER_MESSAGE
    turns = context_turns(task.max_turns, sampler.last_turns)
    futures = sampler.num_samples if sampler.window else 1
    each = []  # replies of a context drawn at each turn
    for turn in turns:
        size, window = candidates_at(sampler, task.max_turns, turn), min(sampler.window, task.max_turns - turn)
        each.append(turn - 1 + size + size * futures * window)
    chain = max(turn + min(sampler.window, task.max_turns - turn) for turn in turns)
    goals, mean_turn = trainer.goals_per_step / processes, statistics.fmean(turns)
    replies = goals * statistics.fmean(each)
    prompt = guessed_tokens(task.system_prompt)
    longest = prompt + chain * (reply + message)
    history = prompt + mean_turn * message + (mean_turn - 1) * reply

    # The rollout. Servers share the rows of all processes.
    speed = 1 if local else cluster.server_devices
    load = 1.0 if local else processes / cluster.servers
    decoded, mean_length = replies * reply * load, prompt + (longest - prompt) / 2
    at_once = config.engine.max_batch * (1 if local else load)
    steps = max(chain * reply * SPREAD, decoded / at_once)
    rows = decoded / steps
    weights, tokens = steps * item * p / bandwidth, decoded * (2 * p / flops + mean_length * shape.kv(item) / bandwidth)
    decoding = (weights + tokens) * slower[0] / speed
    room = getattr(config.engine, "cache_gib", None)
    held = 1.0 if room is None else min(1.0, room * 2**30 / (shape.kv(item) * rows * mean_length))
    read = load * (goals * prompt + replies * (message + (1 - held) * mean_length))
    reading = read * 2 * p / flops * slower[0] / speed
    answers = chain + _judged(config)
    waiting = answers * cluster.user_seconds
    why["decoding"] = (
        f"{steps:.0f} steps of {rows:.1f} rows: {chain} replies after each other x {reply:.0f} tokens x {SPREAD:g}; "
        f"weights {weights:.3g} s, tokens {tokens:.3g} s{f', on {speed} devices' if speed > 1 else ''}"
    )
    why["reading"] = f"{read:.0f} tokens; {held:.0%} of a history is in the cache"
    why["waiting"] = f"{answers} answers after each other x {cluster.user_seconds:g} s"

    # The update, per process.
    kept = getattr(algorithm, "max_trained_candidates", 0) or (2 if hasattr(algorithm, "beta") else math.inf)
    candidates = [min(kept, candidates_at(sampler, task.max_turns, turn)) for turn in turns]
    group = history + statistics.fmean(candidates) * reply
    trained = goals * group
    passes = algorithm.epochs * (2 + (not lora.enabled) + bool(config.model.gradient_checkpointing))
    reference = hasattr(algorithm, "beta") or getattr(algorithm, "kl_coef", 0) > 0
    update = trained * 2 * p * (passes + reference) / flops * slower[1]
    why["update"] = f"{trained:.0f} tokens x 2 P x {passes + reference} passes"
    packed = max(algorithm.tokens_per_micro_batch, group)

    # What processes send each other.
    over = cluster.link if trainer.num_nodes == 1 else cluster.network
    sent = 2 * 4 * trained_weights if processes > 1 else 0.0  # gradients in fp32: reduced, then gathered
    if processes > 1 and config.strategy.name == "fsdp":
        micro = algorithm.epochs * math.ceil(trained / packed)
        sent += item * p * (int(local) + micro * (2 + reference))
    sent *= (processes - 1) / processes
    if not local:
        sent += 2 * 4 * trained_weights  # the adapter is written and read
    sync = sent / (over * 1e9)
    why["sync"] = f"{sent / 1e9:.3g} GB over {over:g} GB/s"

    busy = reading + decoding if local else 0.0
    rollout, staleness = reading + decoding + waiting, config.rollout.max_staleness
    total = rollout + update + sync
    if staleness:
        total = max(busy + update + sync, total / (staleness + 1))
    return Step(
        *(reading, decoding, waiting, update, sync, total, max(0.0, total - busy - update - sync) / total),
        *(replies * processes, replies * reply * processes, trained * processes, longest, packed, why),
    )


def read_rates(folder: str, cluster: ClusterConfig) -> Rates:
    """The speed of a run, from its config and `csv/metrics.csv`.

    Raises:
        BadInput: It is no run that played on rollouts of its own, or one of another version; or a server played the
            user or the judge, so that its rollouts have waiting in them that cannot be told apart.
    """
    path = Path(folder)
    way_out = "Name the folder of a run that `collab train` made with a rollout, such as outputs/NAME/STAMP."
    try:
        config: Any = OmegaConf.load(path / CONFIG)
        with (path / _METRICS).open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("train/update_seconds")]
    except OSError as error:
        raise BadInput(f"cluster.rates={folder}: {error.strerror}: {error.filename}. {way_out}") from error
    if not rows:
        raise BadInput(f"cluster.rates={folder}: {_METRICS} has no train/update_seconds. {way_out}")
    try:
        return _measured(folder, config, rows, cluster)
    except (KeyError, AttributeError) as error:
        raise BadInput(f"cluster.rates={folder} is of another version: {first_line(error)}. {way_out}") from error


def _measured(folder: str, config: Any, rows: Sequence[Mapping[str, str]], cluster: ClusterConfig) -> Rates:
    """The rates of a run by its `config.yaml` and the rows of its steps."""
    players = [config.user, config.judge, *config.user.get("users", {}).values()]
    if any(OmegaConf.select(player, "endpoint.kind") == "http" for player in players):
        raise BadInput(
            f"cluster.rates={folder}: a server played the user or the judge, and the measured rollouts have the "
            "waiting for it in them. Name a run with user=agenda judge=none; cluster.user_seconds adds the waiting."
        )
    seconds, speed, update = (
        statistics.median(float(row[f"train/{name}"]) for row in rows)
        for name in ("rollout_seconds", "rollout_tokens_per_s", "update_seconds")
    )
    tokens = statistics.median(
        float(row["train/rollout_seconds"]) * float(row["train/rollout_tokens_per_s"]) for row in rows
    )
    processes = 1 + len(list(Path(folder).glob("transcripts-rank*.jsonl")))
    alone = replace(cluster, user_seconds=0.0)
    plain = Rates(math.inf, 1.0, 1.0, "")
    reply = tokens / predict(config, processes, alone, plain).replies
    step = predict(config, processes, alone, replace(plain, reply=reply))
    source = (
        f"medians of {len(rows)} steps of {folder}, {processes} process(es): rollout {seconds:.3g} s "
        f"({speed:.0f} tokens/s), update {update:.3g} s, replies of {reply:.1f} tokens"
    )
    return Rates(reply, seconds / (step.reading + step.decoding), update / (step.update + step.sync), source)


def setup(config: Config, processes: int, step: Step) -> Setup:
    """What the memory of a process depends on."""
    return Setup(
        shape_of(config.model.path),
        config.model.lora.r if config.model.lora.enabled else 0,
        processes,
        config.strategy.name == "fsdp",
        getattr(config.engine, "base_url", None) is None,
        config.engine.max_batch,
        getattr(config.engine, "cache_gib", 0.0),
        math.ceil(step.longest),
        math.ceil(step.packed),
        config.model.gradient_checkpointing,
        4 if config.precision == "fp32" else 2,
    )


def describe(config: Config, hosted: Estimate) -> str:
    """The prediction, a line for each figure with where it comes from.

    Args:
        config: Of a training, checked.
        hosted: What its hosted models cost.
    """
    cluster = config.cluster
    processes = devices(config)
    rates = read_rates(cluster.rates, cluster) if cluster.rates else None
    step = predict(config, processes, cluster, rates)
    p = shape_of(config.model.path).parameters
    phase, peak = setup(config, processes, step).peak()
    fits = "fits" if peak + CONTEXT <= cluster.memory_gb else "DOES NOT FIT: see docs/scaling.md#memory"
    paid = processes + cluster.servers * cluster.server_devices
    hours, steps = step.total / 3600, config.trainer.max_steps
    usd = hours * steps * paid * cluster.price
    calls = sum(call.usd(config) for call in hosted.expected)
    basis = (
        f"measured: {rates.source}; the arithmetic times {rates.rollout:.3g} (rollout) and {rates.update:.3g} (update)"
        if rates
        else f"NOT MEASURED: assumed are {cluster.bandwidth_share:.0%} of {cluster.bandwidth:g} GB/s, "
        f"{cluster.flops_share:.0%} of {cluster.tflops:g} TFLOP/s, and replies of the length in the paper's Table 7"
    )
    servers = f", {cluster.servers} server(s) of {cluster.server_devices}" if cluster.servers else ""
    lines = [
        f"A step of {config.trainer.goals_per_step} goals on {processes} x {cluster.name} "
        f"({config.trainer.num_nodes} node(s){servers}), P = {p:.4g}:",
        f"  {basis}",
        f"  played: {step.replies:.0f} replies, {step.decoded:.0f} tokens; trained: {step.trained:.0f} tokens",
        *(
            f"  {name:<9} {getattr(step, name):10.3f} s  {step.why[name]}"
            for name in ("reading", "decoding", "waiting", "update", "sync")
        ),
        f"  step      {step.total:10.3f} s  {_sum_up(config)}",
        f"  idle      {step.idle:10.1%}    of the step, training devices wait for users, judges or servers",
        f"  memory    {peak:10.1f} GB per device in the {phase}, and up to {CONTEXT:g} GB of CUDA and NCCL; "
        f"of {cluster.memory_gb:g} GB: {fits}",
        f"  run       {hours * steps:10.2f} h  {steps} steps; validation, tests and the start are not counted",
        f"  devices   {usd:10.2f} $  {paid} x {cluster.price:g} $ per hour",
        f"  hosted    {calls:10.2f} $  expected, as above",
    ]
    if hosted.total and not cluster.user_seconds:
        lines.append("  note: cluster.user_seconds is 0, so no waiting for the hosted models is counted.")
    return "\n".join(lines)


def _sum_up(config: Config) -> str:
    k = config.rollout.max_staleness
    if not k:
        return "the sum"
    return f"with rollout.max_staleness={k}: the sum / {k + 1}, at least what keeps the device busy"


def _hosted(config: Any) -> bool:
    return isinstance(config, Config) and any(user.endpoint.kind == "http" for _, user in llm_users(config.user, False))


def _judged(config: Any) -> int:
    """Answers of judge and extractor that follow each other at the end of a conversation."""
    if not isinstance(config, Config) or not isinstance(config.judge, LLMJudgeConfig):
        return 0
    return sum(endpoint.kind == "http" and count > 0 for _, endpoint, count, _ in judgements(config))
