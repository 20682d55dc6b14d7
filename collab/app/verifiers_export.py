"""A task of this project as an environment of the package verifiers, for prime-rl and others that train on those.

The environment's `env_response` is the simulated user, its rubric R*. It has what a task has in one rollout; MR is not
part of it, since there the trainer decides what is rolled out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from collab.app import build
from collab.app.compose import load_config
from collab.app.preflight import check_players
from collab.chat.endpoints import Endpoints
from collab.config.checks import check
from collab.conversation import Conversation, Goal, Reply, Score, Usage
from collab.datamodules.goals import load_splits
from collab.randomness import RngKey
from collab.rewards.verifiers_env import package
from collab.simulation.sampler import Simulation
from collab.util.errors import BadInput
from collab.util.quiet import quiet


def load_environment(
    task: str = "doc_edit",
    user: str = "agenda",
    judge: str = "none",
    eval_split: str = "val",
    overrides: Sequence[str] = (),
) -> Any:
    """A `verifiers.MultiTurnEnv` of a task: `verifiers.load_environment("collab", task="doc_edit")`.

    The rubric's reward is R*; the parts of R* are its metrics. All rollouts of a goal face the same draws of the user.
    A rollout whose user or judge failed gets an error, which trainers leave out.

    Args:
        task: An option of the group `task`.
        user: An option of the group `user`.
        judge: An option of the group `judge`.
        eval_split: "val" or "test": the goals of the evaluation dataset.
        overrides: More of the config, as typed on a command line, e.g. `["task.max_turns=3"]`.

    Raises:
        BadInput: verifiers is not installed, `eval_split` is neither, or the options do not fit.
    """
    package(f"The environment of task={task}")
    if eval_split not in ("val", "test"):
        raise BadInput(f"eval_split ({eval_split!r}) must be val or test. Set it to one of them.")
    quiet()
    given = [f"task={task}", f"user={user}", f"judge={judge}", "name=verifiers", *overrides]
    config = load_config("evaluate", given)
    check(config, "evaluate")
    splits = load_splits(config.task)
    check_players(config, splits, policy_here=False)
    with tempfile.TemporaryDirectory() as folder:  # what is spent is not written down: nobody ends the environment
        endpoints = Endpoints(replace(config, output_dir=folder))
    simulation = build.simulation(config, endpoints, lambda: None)
    held_out = splits.test if eval_split == "test" or config.task.evaluation_only else splits.val
    return _environment(simulation, config.task.system_prompt, {"train": splits.train, "eval": held_out})


def _environment(simulation: Simulation, system_prompt: str, goals: dict[str, list[Goal]]) -> Any:
    import verifiers as vf
    from datasets import Dataset

    def dataset(split: str) -> Any:
        opening = [{"role": "system", "content": system_prompt}] if system_prompt else []
        rows = [
            {"prompt": opening, "answer": goal.reference, "info": {"split": split, "goal": place}}
            for place, goal in enumerate(goals[split])
        ]
        return Dataset.from_list(rows) if rows else None

    async def next_of_user(conversation: Conversation, split: str) -> Conversation:
        """The conversation with the user's next message, or at its end."""
        key = RngKey(simulation.seed, split=split, goal=conversation.goal.id, role="user", turn=conversation.turn)
        turn = await simulation.user.respond(conversation, key)
        conversation = replace(conversation, state=conversation.state if turn.state is None else turn.state)
        if turn.end:
            conversation = conversation.with_end(turn.end)
            if not conversation.valid:
                raise vf.InfraError(f"the simulated user failed ({turn.end})")
            return conversation
        return conversation.with_user(turn.text, turn.user)

    class CollabEnv(vf.MultiTurnEnv):
        """The simulated user answers; `state["conversation"]` is the conversation so far."""

        async def setup_state(self, state: Any) -> Any:
            info = state["info"]
            start = Conversation(goals[info["split"]][info["goal"]], system_prompt)
            state["conversation"] = await next_of_user(start, info["split"])
            state["prompt"] = [*state["prompt"], vf.UserMessage(content=state["conversation"].pending or "")]
            return state

        async def env_response(self, messages: Any, state: Any, **kwargs: Any) -> Any:
            answered = state["conversation"].with_reply(_reply(state["trajectory"][-1]))
            state["conversation"] = conversation = await next_of_user(answered, state["info"]["split"])
            if conversation.pending is None:
                state["final_env_response"] = []
                return []
            return [vf.UserMessage(content=conversation.pending)]

    async def reward(state: Any) -> float:
        """R*."""
        conversation = state["conversation"]
        if conversation.pending is not None and state["trajectory"] and not state.get("error"):
            if len(conversation.turns) < len(state["trajectory"]):  # else the request for the next reply failed
                conversation = conversation.with_reply(_reply(state["trajectory"][-1]))
            conversation = conversation.with_end("max_turns")
        score = Score(None, {}) if state.get("error") else await simulation.reward(conversation)
        state["score"] = score
        if score.reward is None and not state.get("error"):
            state["error"] = vf.InfraError("a part of the reward could not be had")
        return 0.0 if score.reward is None else score.reward

    def part(name: str) -> Any:
        async def measured(state: Any) -> float:
            value = state["score"].parts.get(name)
            return 0.0 if value is None else value

        measured.__name__ = name
        return measured

    parts = list(simulation.reward.metrics)
    # One after the other for each rollout: `reward` has put the score there when the parts are read.
    rubric = vf.Rubric(funcs=[reward, *map(part, parts)], weights=[1.0, *[0.0] * len(parts)])
    return CollabEnv(
        dataset=dataset("train"),
        eval_dataset=dataset("eval"),
        rubric=rubric,
        max_turns=simulation.max_turns,
        env_id="collab",
    )


def _reply(step: Any) -> Reply:
    """The reply of a step of a rollout, with the server's count of its tokens."""
    response, said = step["response"], step["completion"][-1]
    usage = response.usage
    counts = None
    if usage is not None:
        counts = Usage(usage.prompt_tokens, usage.completion_tokens, usage.reasoning_tokens)
    cut = bool(step["is_truncated"])
    return Reply(said.content or "", finish_reason="length" if cut else "stop", usage=counts)
