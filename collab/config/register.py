"""What Hydra has to know before it composes, and what is done to a config right after."""

from __future__ import annotations

import functools
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from collab.config.algorithms import DPOConfig, GRPOConfig, OnlineDPOConfig, PPOConfig, SFTConfig
from collab.config.schema import (
    AgendaUserConfig,
    Config,
    EvaluatorConfig,
    HybridUserConfig,
    JudgeConfig,
    LLMJudgeConfig,
    LLMUserConfig,
    LocalEngineConfig,
    MetricConfig,
    MixUserConfig,
    PairwiseConfig,
    ScriptedUserConfig,
    ShardedLLMUserConfig,
    ShardedUserConfig,
    UserLMConfig,
    VerifiersUserConfig,
    VLLMEngineConfig,
)

_DATA = Path(__file__).resolve().parents[1] / "datamodules" / "data"


@functools.cache
def register() -> None:
    """Put the schemas where the YAML files' defaults lists find them (`schema_<option>` beside each option), once.

    In a YAML file `${shipped:FILE}` is the path of a file of `collab/datamodules/data/`, and `${pick:KEY,TABLE,OTHER}`
    the entry KEY of a table, or OTHER if it has none.
    """
    OmegaConf.register_new_resolver("shipped", lambda name: str(_DATA / name), replace=True)
    OmegaConf.register_new_resolver("pick", lambda key, table, other=None: table.get(key, other), replace=True)
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for group, name, node in (
        ("algorithm", "sft", SFTConfig),
        ("algorithm", "dpo", DPOConfig),
        ("algorithm", "online_dpo", OnlineDPOConfig),
        ("algorithm", "grpo", GRPOConfig),
        ("algorithm", "ppo", PPOConfig),
        ("user", "agenda", AgendaUserConfig),
        ("user", "hybrid", HybridUserConfig),
        ("user", "llm", LLMUserConfig),
        ("user", "mix", MixUserConfig),
        ("user", "scripted", ScriptedUserConfig),
        ("user", "sharded", ShardedUserConfig),
        ("user", "sharded_llm", ShardedLLMUserConfig),
        ("user", "userlm", UserLMConfig),
        ("user", "verifiers", VerifiersUserConfig),
        ("judge", "none", JudgeConfig),
        ("judge", "llm", LLMJudgeConfig),
        ("evaluator", "none", EvaluatorConfig),
        ("evaluator", "pairwise", PairwiseConfig),
        ("engine", "local", LocalEngineConfig),
        ("engine", "vllm", VLLMEngineConfig),
    ):
        store.store(group=group, name=f"schema_{name}", node=node)


def apply_metrics(config: Config) -> None:
    """Put what the definitions and the judge measure in place of the metrics of each task.

    A metric that the judge judges instead keeps its weight; one that it judges beside the task's own has weight 0.
    Metrics of the definitions stay as they are.
    """
    tasks = config.definitions.tasks
    for task in (config.task, *config.evaluation.tasks.values()):
        if tasks:
            own = tasks[task.name].metrics if task.name in tasks else {}
            task.metrics = own | config.judge.metrics
            continue
        for name in config.judge.replaces.keys() & task.metrics.keys():
            task.metrics[name] = MetricConfig(config.judge.replaces[name], task.metrics[name].weight)
        for name, target in config.judge.beside.items():
            if name in task.metrics:
                task.metrics[f"judged_{name}"] = MetricConfig(target, 0.0)
        task.metrics |= config.judge.metrics
