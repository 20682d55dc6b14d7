"""How long a run will still take, and a conversation that is printed as it is spoken."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.console import Console
from scripted import ScriptedModel, ScriptedUser

from collab.callbacks.progress import Progress, TimeLeft
from collab.chat.base import Sampling
from collab.config.schema import SamplerConfig
from collab.conversation import Conversation, Goal, Message
from collab.randomness import RngKey
from collab.rewards.reward import ConversationReward
from collab.simulation.sampler import LostCounts, Simulation
from collab.simulation.schedule import context_turn
from collab.simulation.user import UserTurn

# --- time left -------------------------------------------------------------------------------------------------------


def test_nothing_is_said_until_a_step_has_run() -> None:
    left = TimeLeft()
    left.expect("step", 10)
    left.expect("conversation", 8)
    left.done("conversation", 20, 4)
    assert (left.seconds(), str(left)) == (None, "")
    left.done("step", 30)
    assert left.seconds() == 9 * 30 + 4 * 5
    assert str(left) == "about 5 min left"


def test_the_latest_steps_count_and_nothing_is_left_at_the_end() -> None:
    left = TimeLeft()
    left.expect("step", 20)
    left.done("step", 1000)  # the first step compiles
    for _ in range(8):
        left.done("step", 10)
    assert left.seconds() == 11 * 10
    for _ in range(11):
        left.done("step", 10)
    assert (left.seconds(), str(left)) == (None, "")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (42, "about 42 s left"),
        (150, "about 2 min left"),
        (3599, "about 1 h 0 min left"),
        (9000, "about 2 h 30 min left"),
    ],
)
def test_the_estimate_is_in_the_unit_that_fits(seconds: float, said: str) -> None:
    left = TimeLeft()
    left.took("step", seconds)
    left.expect("step", 1)
    assert str(left) == said


def test_a_log_file_says_what_is_left_of_a_resumed_run() -> None:
    out = io.StringIO()
    with Progress(console=Console(file=out)) as progress:
        progress.left.expect("step", 24)
        progress.left.took("conversation", 60, 4)  # a row of before the interruption
        progress.left.expect("conversation", 4)
        progress.steps(24, completed=20)
        progress.step(21, 100.0, MR=0.5)
        progress.phase("trained", 4, "R*")
        progress.done(4)
    assert out.getvalue().splitlines()[0] == "step 21/24  MR 0.500  100 s  about 6 min left"
    assert "\x1b" not in out.getvalue()


# --- as it is spoken -------------------------------------------------------------------------------------------------


class Digit:
    """A metric: the number of the last candidate or sample."""

    async def __call__(self, conversation: Conversation) -> float:
        return float(conversation.assistant_texts[-1][-1])


def words(messages: Sequence[Message], key: RngKey) -> str:
    return f"\x1b[31mc{key.candidate} s{key.sample}\nturn {key.turn}\a and {key.sample}"


def simulation(out: io.StringIO, user: ScriptedUser | None = None, rank: int = 0) -> Simulation:
    return Simulation(
        user=user or ScriptedUser(lambda c, key: f"user {c.turn}"),
        reward=ConversationReward({"digit": (1.0, Digit())}),
        sampling=Sampling(9),
        max_turns=2,
        sampler=SamplerConfig(window=1, num_samples=2, group_size=2),
        seed=1,
        make_engine=lambda lm, tokenizer: None,
        observer=Progress(console=Console(file=out), rank=rank, watch=True),
    )


GOALS = [Goal("a", "A text.", "A text."), Goal("b", "B text.", "B text.")]


def rollout(sim: Simulation, model: ScriptedModel | None = None, step: int = 2, first: int = 0) -> None:
    async def groups() -> None:
        player = model or ScriptedModel(words)
        await asyncio.gather(
            *(sim.group(player, goal, "Be brief.", step, n, LostCounts()) for n, goal in enumerate(GOALS, first))
        )

    asyncio.run(groups())


def test_one_conversation_of_a_rollout_is_printed_with_its_mr() -> None:
    out = io.StringIO()
    sim = simulation(out)
    rollout(sim)
    rollout(sim, step=3)
    first, second = out.getvalue().split("--- step 4, goal a\n")
    said = [
        *("--- step 3, goal a", "  user: user 1", "  assistant: [31mc0 s0", "    turn 1 and 0"),
        *("  user: user 2", "  assistant: [31mc0 s0", "    turn 2 and 0", "--- MR 0.500"),
    ]
    assert first.splitlines() == said and second.splitlines() == said[1:]


def test_a_conversation_that_the_user_left_is_begun_anew() -> None:
    out = io.StringIO()

    def script(conversation: Conversation, key: RngKey) -> UserTurn:
        leaves = conversation.turn == 2 and key.sample == 0 and key.candidate is None and "context" in key.split
        return UserTurn("", "satisfied") if leaves else UserTurn(f"user {conversation.turn} of {key.sample}")

    sim = simulation(out, ScriptedUser(script))
    rollout(sim, first=next(n for n in range(9) if context_turn(1, n, [1, 2]) == 2))
    said = out.getvalue().splitlines()
    assert said[1:4] == ["  user: user 1 of 0", "  assistant: [31mcNone s0", "    turn 1 and 0"]
    assert said[4].startswith("  (the user left too early;") and said[5] == "  user: user 1 of 1"
    assert said[-2:] == ["    turn 2 and 0", "--- MR 0.000"]


def test_a_group_without_a_context_has_no_mr() -> None:
    out = io.StringIO()
    sim = replace(simulation(out), max_turns=1)
    rollout(sim, ScriptedModel(lambda messages, key: None))
    assert "--- no MR" in out.getvalue()


def test_the_first_conversation_of_a_test_is_printed_with_its_reward() -> None:
    out = io.StringIO()
    sim = simulation(out)
    for _ in range(2):  # two policies
        asyncio.run(sim.conversations(ScriptedModel(words), GOALS, "Be brief.", "test", 2))
    row = out.getvalue().splitlines()
    assert row[: len(row) // 2] == row[len(row) // 2 :]
    assert row[0] == "--- test, goal a" and row[1] == "  user: user 1" and row[len(row) // 2 - 1] == "--- R* 0.000"
    assert out.getvalue().count("goal") == 2


def test_other_processes_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    rollout(simulation(out, rank=1))
    assert (out.getvalue(), capsys.readouterr().out) == ("", "")


def test_conversations_of_an_earlier_phase_that_end_late_are_not_counted_below_zero() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    with Progress(console=console) as progress:
        progress.phase("rollout", 4, "MR")
        for _ in range(3):
            progress.began()
        progress.phase("rollout", 4, "MR")  # as with rollout.max_staleness
        progress.ended()
        assert progress._bars.tasks[-1].fields["note"].startswith("2 under way")
