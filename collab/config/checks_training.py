"""Rules of the commands that draw candidates to learn from: training and synthesis."""

from __future__ import annotations

from collections.abc import Iterator

from collab.config.schema import Config


def training_problems(config: Config) -> Iterator[str]:
    """What is wrong for `train.py` alone."""
    yield from _data_problems(config)
    yield from _schedule_problems(config)


def _data_problems(config: Config) -> Iterator[str]:
    algorithm, sampler = config.algorithm, config.sampler
    if algorithm.offline and algorithm.data is None:
        yield (
            f"algorithm.data is null, and {algorithm.name} learns from stored conversations. Set algorithm.data to a "
            "file, a folder or a hub data set of them."
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
            "synthesis: it runs in one process. Set trainer.devices=1 trainer.num_nodes=1."
        )
