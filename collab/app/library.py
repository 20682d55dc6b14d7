"""R* of a plain chat and MR of replies to it, for programs and notebooks: what `import collab` offers.

Both compose a config as a command line would, so that every option of the commands can be used here, too.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from collab.app import build
from collab.app.compose import load_config, options, quoted
from collab.app.preflight import check_players
from collab.chat.base import ChatModel
from collab.chat.endpoints import Endpoints
from collab.config.checks import check
from collab.config.schema import Config, EndpointConfig
from collab.conversation import Candidate, Conversation, Goal, Reply, Score, Turn, Usage
from collab.datamodules.conversations import conversation_of
from collab.datamodules.goals import GoalSplits, make_task, read_goal
from collab.lm.chat_format import ChatFormat
from collab.lm.loading import load_tokenizer
from collab.randomness import RngKey
from collab.simulation.sampler import Simulation
from collab.util.errors import BadInput
from collab.util.paths import config_dir
from collab.util.quiet import quiet

T = TypeVar("T")
Messages = Sequence[Mapping[str, str]]

_SERVED = re.compile(r"(?P<model>[^@]+)@(?P<url>https?://.+)")


def score_conversation(
    messages: Messages,
    goal: Goal | Mapping[str, Any],
    task: str = "doc_edit",
    definitions: str = "collab",
    *,
    judge: str = "none",
    policy: Any = None,
    overrides: Sequence[str] = (),
) -> Score:
    """R* of a finished chat and all its parts (Eq. 2-4).

    Args:
        messages: Dicts of `role` and `content`: a system message if there is one, then user and assistant in turns. The
            assistant has the last word.
        goal: What the user wants: a `Goal`, or a dict with `single_turn_prompt`, `single_turn_completion` and, if the
            user has any, `single_turn_metadata` (docs/data.md).
        task: An option of the group `task`, which says what is measured.
        definitions: An option of the group `definitions`: whose metrics these are.
        judge: As in `multiturn_reward`. `definitions="official"` needs one.
        policy: As in `multiturn_reward`. Its tokenizer counts the tokens; those of a server's model are guessed.
        overrides: More of the config, as typed on a command line.

    Returns:
        `reward`, the weighted sum, and `parts`, name -> value. None, not 0, is what could not be measured.

    Raises:
        BadInput: The messages, the goal or the options do not fit. No model has been loaded by then.
    """

    def work() -> Score:
        config = _config(task, definitions, [*_speaker("judge", judge), *_policy_settings(policy)], overrides)
        chat = conversation_of(messages, read_goal(goal, make_task(config.task)))
        if chat.pending is not None or not chat.turns:
            raise BadInput("The chat must end with a message by 'assistant': a finished one is scored.")
        with _simulation(config, chat.goal, policy) as (simulation, _):
            done = _counted(chat, _tokenizer(config, policy)).with_end("max_turns")
            return asyncio.run(simulation.reward(done))

    return _outside_a_loop(work)


def multiturn_reward(
    messages: Messages,
    candidates: Sequence[str],
    goal: Goal | Mapping[str, Any],
    task: str = "doc_edit",
    definitions: str = "collab",
    *,
    policy: Any = None,
    user: str = "agenda",
    judge: str = "none",
    window: int = 2,
    num_samples: int = 3,
    seed: int = 1,
    overrides: Sequence[str] = (),
) -> list[Candidate]:
    """MR of each candidate reply to a chat (Eq. 1), by forward sampling.

    Args:
        messages: As in `score_conversation`; the user has the last word, which the candidates answer. A system message
            instructs the policy.
        candidates: The replies to compare.
        goal: As in `score_conversation`.
        task, definitions: As in `score_conversation`.
        policy: Who plays the assistant on: a folder or hub id of weights (an adapter, too), an option of the group
            `model`, `MODEL@URL` of a server, an option of the group `endpoint`, a pair of a loaded model and its
            tokenizer, or any `ChatModel`. None is the small model that ships.
        user: Who plays the user: an option of the group `user`, `MODEL@URL`, or a folder or hub id.
        judge: Who judges: an option of the group `judge`, `MODEL@URL`, or a folder or hub id.
        window: w, the maximum further turns; 0 scores the chat with the candidate as it stands.
        num_samples: Forward samples of each candidate.
        seed: All draws are functions of it. All candidates face the same draws of the user.
        overrides: More of the config, as typed on a command line, e.g. `["task.max_new_tokens=200"]`.

    Returns:
        For each reply, in order: `mr`, None if no future could be scored; `spread`, the standard deviation of R* over
        its futures; `futures`, whole conversations; and `scores` of these, which `part(name)` averages.

    Raises:
        BadInput: As in `score_conversation`.
    """

    def work() -> list[Candidate]:
        _check_candidates(candidates)
        speakers = [*_policy_settings(policy), *_speaker("user", user), *_speaker("judge", judge)]
        settings = [f"seed={seed}", f"sampler.window={window}", f"sampler.num_samples={num_samples}"]
        config = _config(task, definitions, [*speakers, *settings], overrides)
        chat = conversation_of(messages, read_goal(goal, make_task(config.task)))
        if chat.pending is None:
            raise BadInput("The chat must end with a message by 'user', which the candidates answer.")
        config.task.max_turns = max(config.task.max_turns, chat.turn + window)  # a chat may be longer than the task's
        with _simulation(config, chat.goal, policy) as (simulation, endpoints):
            tokenizer = _tokenizer(config, policy)
            engine = _chat_model(config, policy, endpoints, simulation)
            replies = [_reply(text, tokenizer) for text in candidates]
            key = RngKey(config.seed, goal=chat.goal.id)
            players = simulation.players(engine)
            return asyncio.run(simulation.scored(players, _counted(chat, tokenizer), replies, key))

    return _outside_a_loop(work)


# --- the config ------------------------------------------------------------------------------------------------------


def _config(task: str, definitions: str, settings: Sequence[str], overrides: Sequence[str]) -> Config:
    """The checked config; `overrides` come last."""
    config = load_config(
        "evaluate", [f"task={task}", f"definitions={definitions}", "name=library", *settings, *overrides]
    )
    if config.dry_run:
        raise BadInput(
            "dry_run=true: these functions make their calls and estimate none. Leave it out; `collab estimate` tells "
            "what a run of the same user and judge costs."
        )
    endpoint = config.evaluation.endpoint
    served = endpoint.base_url and endpoint.model
    config.policies = [f"policy:{endpoint.model}@{endpoint.base_url}"] if served else ["base"]
    check(config, "evaluate")
    return config


def _speaker(group: str, who: Any) -> list[str]:
    """The overrides that make `who` the user or the judge."""
    if not isinstance(who, str | Path):
        raise BadInput(
            f"{group} is {who!r}; it must be an option of the group {group}, MODEL@URL, a folder or a hub id. Give "
            "one of them."
        )
    who = str(who)
    if who in (known := options([config_dir()])[group]):
        return [f"{group}={who}"]
    if served := _SERVED.fullmatch(who):
        return [f"{group}=vllm", *_endpoint(f"{group}.endpoint", served)]
    if "/" not in who and not Path(who).exists():
        raise BadInput(
            f"{group}={who!r} is none of {', '.join(known)}, and no MODEL@URL, folder or hub id. Name one of them."
        )
    return [f"{group}=local", f"{group}.endpoint.model={quoted(who)}"]


def _policy_settings(policy: Any) -> list[str]:
    """The overrides that make `policy` the model, or the server that plays it."""
    if policy is None or hasattr(policy, "complete") or _is_pair(policy):
        return []
    if not isinstance(policy, str | Path):
        raise BadInput(
            f"policy is a {type(policy).__name__}; it must be a path, a hub id, MODEL@URL, a pair (model, tokenizer), "
            "or a ChatModel. Give one of them."
        )
    known, name = options([config_dir()]), str(policy)
    if name in known["model"]:
        return [f"model={name}"]
    if served := _SERVED.fullmatch(name):
        return _endpoint("evaluation.endpoint", served)
    if name in known["endpoint"] and name != "local":
        return [f"+endpoint@evaluation.endpoint={name}"]
    return [f"model.path={quoted(name)}"]


def _endpoint(key: str, served: re.Match[str]) -> list[str]:
    return [f"{key}.model={quoted(served['model'])}", f"{key}.base_url={quoted(served['url'])}"]


def _is_pair(policy: Any) -> bool:
    return isinstance(policy, tuple) and len(policy) == 2


def _check_candidates(candidates: Any) -> None:
    if isinstance(candidates, str) or not candidates or not all(isinstance(text, str) for text in candidates):
        raise BadInput(f"candidates ({str(candidates)[:40]!r}) must be a list of texts, the replies to compare.")


# --- conversations ---------------------------------------------------------------------------------------------------


@contextmanager
def _simulation(config: Config, goal: Goal, policy: Any) -> Iterator[tuple[Simulation, Endpoints]]:
    """User and reward, after all checks, and the servers of the conversations within."""
    quiet()
    elsewhere = hasattr(policy, "complete") or _is_pair(policy) or config.evaluation.endpoint.base_url
    check_players(config, GoalSplits([], [], [goal]), policy_here=not elsewhere)
    with tempfile.TemporaryDirectory() as folder, Endpoints(replace(config, output_dir=folder)) as endpoints:
        yield build.simulation(config, endpoints, lambda: None), endpoints


def _chat_model(config: Config, policy: Any, endpoints: Endpoints, simulation: Simulation) -> ChatModel:
    if hasattr(policy, "complete"):
        return cast(ChatModel, policy)
    if _is_pair(policy):
        return cast(ChatModel, simulation.make_engine(*policy))
    endpoint = config.evaluation.endpoint
    local = EndpointConfig(kind="local", model=config.model.path)
    return build.chat_model(config, endpoint if endpoint.base_url else local, endpoints)


def _tokenizer(config: Config, policy: Any) -> ChatFormat | None:
    """What counts the policy's tokens; None if its tokenizer is not here."""
    if _is_pair(policy):
        return ChatFormat(policy[1])
    if hasattr(policy, "complete") or config.evaluation.endpoint.base_url:
        return None
    return ChatFormat(load_tokenizer(config.model))


def _reply(text: str, tokenizer: ChatFormat | None) -> Reply:
    """A reply that was written by hand, with its tokens and the end of its turn counted."""
    return Reply(text, usage=None if tokenizer is None else Usage(0, len(tokenizer.encode_text(text)) + 1))


def _counted(chat: Conversation, tokenizer: ChatFormat | None) -> Conversation:
    turns = tuple(Turn(turn.user, _reply(turn.reply.text, tokenizer)) for turn in chat.turns)
    return replace(chat, turns=turns)


def _outside_a_loop(work: Callable[[], T]) -> T:
    """Run `work`, which starts an event loop, in a thread of its own where one runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()
