"""Environments of the package verifiers (https://github.com/PrimeIntellect-ai/verifiers), played reply by reply.

There an environment plays a whole rollout and keeps what happens in a state that it changes in place. Here MR branches
a conversation into many futures, so the state is a value (`Waiting`) in `Conversation.state`: each step works on a copy
of it, and two futures share nothing. The steps are those of `MultiTurnEnv.rollout`, through the methods that
environments override: `setup_state`, `env_response`, the stop conditions, `cleanup` and the rubric.

verifiers is the extra `verifiers`; it is imported when an environment is loaded.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from collab.conversation import Conversation, Goal, Reply
from collab.util.errors import BadInput, error_text

ENTRY = "verifiers"  # of a goal's metadata: {"env": name, "args": arguments of load_environment, "row": of its dataset}


@dataclass(frozen=True)
class Waiting:
    """A rollout that waits for a reply, or that is over.

    Attributes:
        state: The `verifiers.State`; never changed, only copied.
        prompt: The messages that the reply answers; None if the environment has ended the rollout.
        text: What the environment says now; "" if the rollout is over.
        failed: Whether it ended since the environment failed.
    """

    state: Any
    prompt: tuple[Any, ...] | None
    text: str = ""
    failed: bool = False


class RubricReward:
    """The reward that the rubric of a goal's environment gives a conversation, in the rubric's own units.

    A reward function that raises counts 0, as verifiers has it. With a user other than `user=verifiers`, the rubric
    reads the environment's prompt, and all that came after the user's first message as the completion.
    """

    needs = (ENTRY,)

    async def __call__(self, conversation: Conversation) -> float | None:
        if not conversation.turns:
            return None
        reward = await environment_of(conversation.goal).score(conversation)
        return reward if math.isfinite(reward) else None


class Rollouts:
    """The rollouts of one environment.

    Args:
        env: A `verifiers.MultiTurnEnv`, such as a `SingleTurnEnv`.
    """

    def __init__(self, env: Any) -> None:
        self.env = env

    async def opened(self, goal: Goal) -> Waiting:
        """The start of a goal's rollout."""
        import verifiers as vf
        from verifiers.utils.message_utils import get_messages

        state = await self.env.init_state(goal.metadata[ENTRY]["row"], _no_client(), "policy", None)
        try:
            state = await self.env.setup_state(state) or state
        except vf.Error:
            return Waiting(state, None, failed=True)
        prompt = tuple(get_messages(state["prompt"]))  # the environment may have written it anew
        return Waiting(state, prompt, text_of(prompt))

    async def answered(self, waiting: Waiting, reply: Reply) -> Waiting:
        """What the environment says to a reply. `waiting` stays as it is.

        Raises:
            BadInput: The state cannot be copied, or the environment does what this project cannot play.
        """
        import verifiers as vf
        from verifiers.utils.message_utils import get_messages

        state = await self._with(waiting, reply)
        prompt: tuple[Any, ...] = ()
        if not await self.env.is_completed(state):
            try:
                prompt = tuple(get_messages(await self.env.get_prompt_messages(state)))
            except vf.Error as error:
                state["error"] = error
            if not await self.env.is_completed(state):
                return Waiting(state, prompt, text_of(self._added(waiting, reply, prompt)))
        return Waiting(state, None, failed=state.get("error") is not None)

    async def replayed(self, conversation: Conversation) -> Waiting:
        """The rollout of a conversation without its state, such as a stored one, behind the user's last message.

        It has failed if the environment says something else now.
        """
        waiting = await self.opened(conversation.goal)
        for turn, following in zip(conversation.turns, conversation.turns[1:], strict=False):
            waiting = await self.answered(waiting, turn.reply)
            if waiting.prompt is None or waiting.text != following.user:
                return Waiting(waiting.state, None, failed=True)
        return waiting

    async def score(self, conversation: Conversation) -> float:
        """The rubric's reward of a finished conversation."""
        waiting = conversation.state
        if isinstance(waiting, Waiting):
            played = len(waiting.state["trajectory"])
            missing = conversation.turns[played:]
            assert len(missing) <= 1, "the environment has seen all replies but the last"
            state = await self._with(waiting, missing[0].reply) if missing else _copied(waiting.state)
        else:
            state = await self._of_another_user(conversation)
        await self.env.cleanup(state)  # it renders the completion, too
        await self.env.rubric.score_rollout(state)
        await self.env.rubric.cleanup(state)
        return float(state["reward"])

    async def _of_another_user(self, conversation: Conversation) -> Any:
        import verifiers as vf
        from verifiers.utils.message_utils import get_messages

        state = (await self.opened(conversation.goal)).state
        prompt = list(get_messages(state["prompt"]))
        for place, turn in enumerate(conversation.turns):
            prompt = [*prompt, *([vf.UserMessage(content=turn.user)] if place else [])]
            await self.env.add_model_response(state, prompt, _response(turn.reply))
            prompt = [*prompt, *state["trajectory"][-1]["completion"]]
        return state

    async def _with(self, waiting: Waiting, reply: Reply) -> Any:
        """A copy of the state in which the reply has been given."""
        assert waiting.prompt is not None
        state = _copied(waiting.state)
        await self.env.add_model_response(state, list(waiting.prompt), _response(reply))
        return state

    def _added(self, waiting: Waiting, reply: Reply, prompt: Sequence[Any]) -> Sequence[Any]:
        """The messages behind the reply in the next prompt."""
        before = waiting.prompt or ()
        said = [message.content for message in prompt[: len(before) + 1]]
        if said != [*(message.content for message in before), reply.text]:
            raise BadInput(
                f"The environment {self.env.env_id} writes earlier messages of a conversation anew, which a policy "
                "that keeps the tokens it has sampled cannot follow. Take an environment that only adds messages."
            )
        return prompt[len(before) + 1 :]


def environment_of(goal: Goal) -> Rollouts:
    """The environment of a goal of task=verifiers."""
    entry = goal.metadata[ENTRY]
    return load(entry["env"], entry["args"])


def load(name: str, args: Mapping[str, Any]) -> Rollouts:
    """An environment, loaded once in a process.

    Args:
        name: As `verifiers.load_environment` takes it: an installed module that has a function `load_environment`.
        args: Keyword arguments of that function.

    Raises:
        BadInput: It is not there, does not load, or is of a kind that cannot be played here.
    """
    return _loaded(name, json.dumps(dict(args), sort_keys=True))


def package(what: str) -> Any:
    """The package verifiers.

    Args:
        what: Needs it, for the message.

    Raises:
        BadInput: It is not installed.
    """
    try:
        import verifiers
    except ImportError as error:
        raise BadInput(
            f"{what} needs the package verifiers, which is not installed. Install it by "
            "`pip install 'collab-llm[verifiers]'`."
        ) from error
    return verifiers


@functools.cache
def _loaded(name: str, args: str) -> Rollouts:
    what = f"task.options.env={name}"
    vf = package(what)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        env = vf.load_environment(name, **json.loads(args))
    except Exception as error:  # whatever the environment's code raises
        raise BadInput(
            f"{what} with task.options.args={args} cannot be loaded: {error_text(error)} Name an installed module that "
            "has load_environment, and arguments that it takes."
        ) from error
    finally:  # an environment takes these signals for itself, and a run that is interrupted has to save its work
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
    if not isinstance(env, vf.MultiTurnEnv):
        raise BadInput(
            f"{what} is a {type(env).__name__}; only a MultiTurnEnv, such as a SingleTurnEnv, is played reply by "
            "reply. Take another environment."
        )
    if env.tool_defs:
        raise BadInput(
            f"{what} has tools ({', '.join(tool.name for tool in env.tool_defs)}), and tools of verifiers are not "
            "called here. Take an environment without tools; docs/environments.md shows a task with tools of its own."
        )
    if env.requires_group_rollouts:
        raise BadInput(
            f"{what} has a rubric that compares the rollouts of a group, and R* is of one conversation. Take another "
            "environment."
        )
    if env.message_type != "chat":
        raise BadInput(f"{what} has message_type={env.message_type}; it must be chat. Take another environment.")
    return Rollouts(env)


def text_of(messages: Sequence[Any], skip: Sequence[str] = ()) -> str:
    """The text of messages that are not the assistant's, without those of the roles in `skip`.

    Raises:
        BadInput: One is the assistant's, or holds more than text.
    """
    texts = []
    for message in messages:
        parts = [message.content] if isinstance(message.content, str) else list(message.content or ())
        found = [part if isinstance(part, str) else getattr(part, "text", None) for part in parts]
        if message.role == "assistant" or None in found:
            raise BadInput(
                f"The environment has a message of the {message.role} that is "
                f"{'an example of a reply' if message.role == 'assistant' else 'more than text'}; it may write text as "
                "system, user or tool alone. Take an environment, or arguments of it, that do."
            )
        if message.role not in skip:
            texts += [text for text in found if text is not None]
    return "\n\n".join(texts)


def _copied(state: Any) -> Any:
    shared = [state.get(name) for name in ("client", "usage_tracker", "usage")]  # of no use here, and not for copying
    try:
        return copy.deepcopy(state, {id(part): part for part in shared})
    except Exception as error:  # whatever its parts raise
        raise BadInput(
            f"The state of the environment cannot be copied: {error_text(error)} MR branches a conversation, so each "
            "future needs a copy. Take an environment whose state is plain values."
        ) from error


def _response(reply: Reply) -> Any:
    from verifiers.types import Response, ResponseMessage

    cut = reply.finish_reason == "length"
    message = ResponseMessage(content=reply.text, finish_reason=reply.finish_reason, is_truncated=cut)
    return Response(id="", created=0, model="policy", message=message)


@functools.cache
def _no_client() -> Any:
    """Stands where an environment expects a client: the policy speaks outside of it."""
    from verifiers.clients import Client

    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("an environment cannot ask the policy by itself here")

    return type("NoClient", (Client,), dict.fromkeys(Client.__abstractmethods__, refuse))(None)
