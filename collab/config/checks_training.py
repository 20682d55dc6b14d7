"""Rules of the commands that make something: training and synthesis."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from collab.config.endpoints import endpoints_in, has_teacher
from collab.config.schema import Config, EndpointConfig, LocalEngineConfig, VLLMEngineConfig
from collab.util.processes import started


def training_problems(config: Config) -> Iterator[str]:
    """What is wrong for `train.py` alone."""
    yield from _data_problems(config)
    yield from _schedule_problems(config)
    yield from _staleness_problems(config)


def _data_problems(config: Config) -> Iterator[str]:
    algorithm, sampler = config.algorithm, config.sampler
    if algorithm.offline and algorithm.data is None:
        yield (
            f"algorithm.data is null, and {algorithm.name} learns from stored conversations. Set algorithm.data to a "
            "file, a folder or a hub data set of them."
        )
    if algorithm.plays_user and getattr(algorithm, "minimum_metric", None) is not None:
        yield (
            "algorithm.minimum_metric reads the scores of an assistant's replies, and algorithm.speaker=user learns "
            "messages of users, which have none. Set algorithm.minimum_metric=null."
        )
    if algorithm.plays_user and config.trainer.val_every == 0:
        yield (
            "trainer.val_every=0 measures nothing, and algorithm.speaker=user exports the model with the best "
            f"perplexity of held-out logs. Set trainer.val_every={config.trainer.max_steps}, or less."
        )
    if algorithm.lora_dropout and not algorithm.offline:
        yield (
            f"algorithm.lora_dropout=true, and {algorithm.name} learns from what the policy samples without dropout: "
            "the update would see another distribution. Set algorithm.lora_dropout=false."
        )
    if sampler.temperature == 0:
        yield (
            f"sampler.temperature (0) must be above 0 for {algorithm.name}: it learns from log-probs at that "
            "temperature. Set sampler.temperature=0.7, for example."
        )
    if algorithm.data is not None:
        return  # nothing that is sampled now is learned
    if algorithm.compares_candidates and sampler.group_size == 1:
        yield (
            f"sampler.group_size (1) must be at least 2 for {algorithm.name}: it compares candidates. Set "
            "sampler.group_size=2 or more."
        )
    if sampler.top_p < 1 or sampler.top_k > 0:
        yield (
            f"sampler.top_p={sampler.top_p} sampler.top_k={sampler.top_k} cut off a part of the sampled distribution, "
            f"and {algorithm.name} learns from log-probs of the whole one. Set sampler.top_p=1 sampler.top_k=0."
        )


def _schedule_problems(config: Config) -> Iterator[str]:
    algorithm, trainer = config.algorithm, config.trainer
    steps, every, goals, parts = trainer.max_steps, trainer.val_every, trainer.goals_per_step, algorithm.num_minibatches
    updates = steps * parts * algorithm.epochs
    if algorithm.warmup_steps > updates >= 1:
        yield (
            f"algorithm.warmup_steps ({algorithm.warmup_steps}) must be at most the {updates} optimizer steps of the "
            f"run (trainer.max_steps={steps}): the learning rate would never reach its peak. Set a shorter warm-up."
        )
    if parts >= 1 and goals % parts:
        yield (
            f"algorithm.num_minibatches ({parts}) must divide trainer.goals_per_step ({goals}), since the groups are "
            f"split evenly. Set trainer.goals_per_step={(goals // parts + 1) * parts}."
        )
    if 1 <= every < steps and steps % every:
        near = min((n for n in range(1, steps + 1) if steps % n == 0), key=lambda n: abs(n - every))
        yield (
            f"trainer.val_every ({every}) must divide trainer.max_steps ({steps}) or be at least as much: what is "
            "learned after the last validation could never be the best policy. "
            f"Set trainer.val_every={near}, or trainer.max_steps={(steps // every + 1) * every}."
        )


def _staleness_problems(config: Config) -> Iterator[str]:
    staleness, algorithm = config.rollout.max_staleness, config.algorithm
    if staleness < 1:
        return
    given, otherwise = f"rollout.max_staleness={staleness}", "or set rollout.max_staleness=0"
    if algorithm.offline:
        yield (
            f"{given} plays conversations of the next steps during an update, and {algorithm.name} learns from stored "
            "ones: nothing is played. Set rollout.max_staleness=0."
        )
    elif not algorithm.weights_samples:
        yield (
            f"{given} trains on replies of an older policy, and the loss of {algorithm.name} does not weight them by "
            f"their importance. Set algorithm=grpo, rloo or ppo, {otherwise}."
        )
    if not isinstance(config.engine, LocalEngineConfig):
        yield (
            f"{given} decodes with copies of the policy in this process, and the engine is {config.engine.target}. Set "
            f"engine=local, {otherwise}."
        )
    elif config.engine.deterministic and config.threads != 1:
        yield (
            f"{given} decodes during the update, and engine.deterministic=true decodes with one thread, a setting of "
            f"the whole process. Set threads=1 or engine.deterministic=false, {otherwise}."
        )
    if config.strategy.name == "fsdp":
        yield (
            f"{given} needs the whole policy in each process, and strategy=fsdp keeps shards. Set strategy=ddp, "
            f"{otherwise}."
        )
    for key, endpoint in endpoints_in(config).items():
        if endpoint.kind == "local" and not key.startswith(("evaluation.", "evaluator.", "teacher")):
            yield (
                f"{given} plays conversations of several steps at once, and {key}.kind=local is one model in this "
                f"process, which serves one rollout at a time. Set {key}.kind=http and the address of a server, "
                f"{otherwise}."
            )


def synthesis_problems(config: Config) -> Iterator[str]:
    """What is wrong for `collab synthesize` alone."""
    sampler, trainer = config.sampler, config.trainer
    if sampler.group_size == 1:
        yield (
            "sampler.group_size (1) must be at least 2 for a synthesis: it compares candidates, and half of them are "
            "sampled under the proactive instruction. Set sampler.group_size=2 or more."
        )
    if sampler.temperature == 0:
        yield (
            "sampler.temperature (0) must be above 0 for a synthesis: greedy candidates of a context are all the same. "
            "Set sampler.temperature=0.7, for example."
        )
    if trainer.devices not in ("auto", 1) or trainer.num_nodes != 1:
        yield (
            f"trainer.devices ({trainer.devices}) and trainer.num_nodes ({trainer.num_nodes}) must be 1 for a "
            "synthesis: it starts no other processes. Set trainer.devices=1 trainer.num_nodes=1, and start several by "
            "torchrun or SLURM, or with synthesis.part=1/2 and synthesis.part=2/2."
        )
    if isinstance(config.engine, VLLMEngineConfig):
        yield (
            "engine=vllm trains and evaluates. In a synthesis a server speaks as the teacher. Set engine=local "
            "teacher=vllm."
        )
    yield from _part_problems(config.synthesis.part)


def _part_problems(part: str | None) -> Iterator[str]:
    if part is None:
        return
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        yield (
            f"synthesis.part ({part}) must be I/N, the number of a part and the number of all parts, from 1/N to N/N. "
            "Set synthesis.part=1/4 for the first of four."
        )
    launched = started()
    if launched and launched[1] * launched[2] > 1:
        yield (
            f"synthesis.part ({part}) says which part this process plays, and so does {launched[0]}, which has started "
            f"{launched[1] * launched[2]} processes. Leave synthesis.part out."
        )


def teacher_problems(config: Config, entry: str) -> Iterator[str]:
    """What is wrong with the teacher, whose other fields are checked as those of all servers."""
    teacher = config.teacher
    if teacher.kind == "local":
        yield (
            "teacher.kind=local: weights in this process are those of the model. Set teacher=none, and model.path to "
            "the teacher's folder or Hugging Face id."
        )
    elif not has_teacher(config):
        if replace(teacher, base_url="") != EndpointConfig():
            yield (
                f"teacher.base_url is empty, and teacher.model is {teacher.model}: a teacher speaks from a server. "
                "Take an option, as in teacher=vllm, or set teacher.base_url."
            )
    elif entry != "synthesize":
        yield (
            "teacher plays the assistant of `collab synthesize`, and nothing here. Set teacher=none; a server's model "
            "is evaluated as a row, 'policies=[MODEL@URL]'."
        )


def hub_problems(repo: str | None, entry: str) -> Iterator[str]:
    """What is wrong with `push_to_hub`."""
    if repo is None:
        return
    if entry == "evaluate":
        yield f"push_to_hub={repo}: an evaluation makes nothing to put there. Leave it out."
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        yield (
            f"push_to_hub ({repo}) must be OWNER/NAME, the owner a user or an organisation of the Hugging Face hub. "
            "Set push_to_hub=OWNER/NAME."
        )
