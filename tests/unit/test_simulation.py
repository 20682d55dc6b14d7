"""The rollout of one goal, part by part: whom its draws depend on, what the players hear, what counts as lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from scripted import Script, ScriptedModel, ScriptedUser, spoken

from collab.chat.base import ContextFull, Sampling
from collab.config.schema import SamplerConfig
from collab.conversation import Conversation, Goal, Group, Message, Score
from collab.randomness import RngKey
from collab.rewards.reward import ConversationReward
from collab.simulation.conversation_loop import Players, draw_context, play, play_goals
from collab.simulation.multiturn import multiturn_reward
from collab.simulation.sampler import LostCounts, Simulation
from collab.simulation.schedule import context_turn
from collab.simulation.user import UserTurn, invalid
from collab.util.errors import BadInput

GOAL, OTHER = Goal("a", "A text.", "A text."), Goal("b", "B text.", "B text.")
KEY = RngKey(1, split="train")
FULL = invalid("context_full")


class TooLong(ScriptedModel):
    """Refuses each prompt as too long."""

    async def complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey) -> Any:
        raise ContextFull("too long")


class LastDigit:
    """A metric: the number at the end of the last reply; None if there is none."""

    async def __call__(self, conversation: Conversation) -> float | None:
        last = conversation.assistant_texts[-1]
        return float(last[-1]) if last[-1].isdigit() else None


def random_digits(messages: Sequence[Message], key: RngKey) -> str:
    return f"{key.stream().integers(10**9)}"


def talker(ends: dict[int, str] | None = None) -> ScriptedUser:
    """Says "user <turn>"; in sample s of a conversation it leaves at once, for the reason `ends[s]`."""
    return ScriptedUser(lambda c, key: UserTurn("", end) if (end := (ends or {}).get(key.sample)) else f"user {c.turn}")


def players(script: Script = random_digits, user: ScriptedUser | None = None, max_turns: int = 3) -> Players:
    return Players(ScriptedModel(script), user or talker(), Sampling(9), max_turns)  # type: ignore[arg-type]


def simulation(user: ScriptedUser | None = None, max_turns: int = 1, **changes: Any) -> Simulation:
    return Simulation(
        user=user or talker(),  # type: ignore[arg-type]
        reward=ConversationReward({"digit": (1.0, LastDigit())}),
        sampling=Sampling(9),
        max_turns=max_turns,
        sampler=SamplerConfig(**{"window": 1, "num_samples": 2, "group_size": 3, **changes}),
        seed=1,
        make_engine=lambda lm, tokenizer: None,
    )


def group(sim: Simulation, model: ScriptedModel | None = None, goal: Goal = GOAL, number: int = 0) -> Group:
    return asyncio.run(sim.group(model or ScriptedModel(random_digits), goal, "Be brief.", 0, number, LostCounts()))


def texts(found: Group) -> list[str]:
    return [candidate.reply.text for candidate in found.candidates]


def test_a_group_knows_the_number_of_its_goal_in_the_run() -> None:
    assert group(simulation(), number=7).number == 7


# --- draws -----------------------------------------------------------------------------------------------------------


def test_candidates_depend_on_seed_and_goal() -> None:
    first = texts(group(simulation()))
    assert first == texts(group(simulation()))
    assert not set(first) & set(texts(group(replace(simulation(), seed=2))))
    assert not set(first) & set(texts(group(simulation(), goal=OTHER)))


def test_the_order_of_turns_depends_on_the_seed() -> None:
    orders = {tuple(context_turn(seed, number, range(1, 9)) for number in range(8)) for seed in range(4)}
    assert len(orders) == 4
    by_seed = [
        [group(replace(simulation(max_turns=4), seed=s), number=n).context.turn for n in range(4)] for s in (1, 2)
    ]
    assert by_seed == [[context_turn(s, n, [1, 2, 3, 4]) for n in range(4)] for s in (1, 2)]


def test_an_evaluation_depends_on_seed_and_split() -> None:
    def said(seed: int, split: str) -> str:
        sim = replace(simulation(), seed=seed)
        [(done, _)] = asyncio.run(sim.conversations(ScriptedModel(random_digits), [GOAL], "", split, 1))
        return done.assistant_texts[0]

    assert said(1, "test") == said(1, "test")
    assert len({said(1, "test"), said(2, "test"), said(1, "val")}) == 3


def test_contexts_of_two_goals_share_no_draws() -> None:
    drawn = [asyncio.run(draw_context(players(), goal, "", 2, KEY)).assistant_texts for goal in (GOAL, OTHER)]
    assert drawn[0] != drawn[1]


def test_candidates_face_the_same_user_unless_told_otherwise() -> None:
    at = players(user=ScriptedUser(lambda conversation, key: random_digits([], key)))
    reward = ConversationReward({"digit": (1.0, LastDigit())})
    context, replies = Conversation(GOAL).with_user("hi"), [spoken("one"), spoken("two")]
    how: dict[str, Any] = {"players": at, "reward": reward, "window": 1, "num_samples": 1, "key": KEY}
    a, b = asyncio.run(multiturn_reward(context, replies, **how))
    assert a.futures[0].turns[1].user == b.futures[0].turns[1].user
    a, b = asyncio.run(multiturn_reward(context, replies, **how, paired=False))
    assert a.futures[0].turns[1].user != b.futures[0].turns[1].user


def test_user_and_policy_draw_by_their_role_and_the_turn() -> None:
    at = players(max_turns=2)
    asyncio.run(play(at, Conversation(GOAL), KEY))
    assert at.policy.requests == [KEY.at(role="policy", turn=turn) for turn in (1, 2)]  # type: ignore[attr-defined]
    assert at.user.requests == [KEY.at(role="user", turn=turn) for turn in (1, 2)]  # type: ignore[attr-defined]


# --- what is heard ---------------------------------------------------------------------------------------------------


def test_the_policy_hears_its_instruction_in_contexts_and_in_evaluations() -> None:
    model = ScriptedModel(random_digits)
    assert group(simulation(), model).context.system_prompt == "Be brief."
    asyncio.run(simulation().conversations(model, [GOAL], "Be brief.", "test", 1))
    assert {messages[0] for messages, _, _ in model.asked} == {Message("system", "Be brief.")}


def test_a_goal_is_played_once_in_an_evaluation_unless_told_otherwise() -> None:
    done = asyncio.run(play_goals(players(), [GOAL, OTHER], "Be brief.", KEY))
    assert [(c.goal, c.system_prompt) for c in done] == [(GOAL, "Be brief."), (OTHER, "Be brief.")]


def test_a_stored_context_gets_the_goal_of_the_step() -> None:
    """Only the prompt is compared: what else a goal says may have been changed since."""
    stored = {(GOAL.prompt, 1): Conversation(GOAL).with_user("stored")}
    changed = replace(GOAL, reference="Another text.")
    found = group(replace(simulation(), contexts=stored), goal=changed)
    assert (found.context.pending, found.context.goal) == ("stored", changed)


def test_conversations_come_with_their_own_scores() -> None:
    model = ScriptedModel(lambda messages, key: f"{key.goal} {key.sample}")
    scored = asyncio.run(simulation().conversations(model, [GOAL, OTHER], "", "test", 2))
    assert [(c.assistant_texts, s.reward) for c, s in scored] == [
        (["a 0"], 0),
        (["a 1"], 1),
        (["b 0"], 0),
        (["b 1"], 1),
    ]


def test_each_end_of_a_conversation_is_told() -> None:
    told: list[None] = []
    sim = replace(simulation(), on_conversation=lambda: told.append(None))
    group(sim)
    assert len(told) == 3 * 2
    asyncio.run(sim.conversations(ScriptedModel(random_digits), [GOAL, OTHER], "", "test", 2))
    assert len(told) == 3 * 2 + 2 * 2


@pytest.mark.parametrize(
    ("last", "kept"), [(UserTurn("", "satisfied"), "Ann"), (UserTurn("", "satisfied", "Bob"), "Bob")]
)
def test_a_conversation_keeps_the_name_of_who_plays_the_user(last: UserTurn, kept: str) -> None:
    heard: list[str] = []

    def script(conversation: Conversation, key: RngKey) -> UserTurn:
        heard.append(conversation.user)
        return UserTurn("hi", user="Ann") if conversation.turn == 1 else last

    done = asyncio.run(play(players(user=ScriptedUser(script)), Conversation(GOAL), KEY))
    assert (heard, done.user, done.ended_by) == (["", "Ann"], kept, "satisfied")


def test_a_policy_that_fails_ends_its_conversation() -> None:
    done = asyncio.run(play(players(lambda messages, key: None), Conversation(GOAL), KEY))
    assert (done.turns, done.ended_by, done.valid) == ((), invalid("policy"), False)


# --- contexts --------------------------------------------------------------------------------------------------------


def leaving(opened: dict[int, int]) -> ScriptedUser:
    """Leaves in sample s after `opened[s]` turns."""
    return ScriptedUser(
        lambda c, key: UserTurn("", "patience") if c.turn > opened[key.sample] else f"user {key.sample}"
    )


@pytest.mark.parametrize(
    ("opened", "sample", "turn"),
    [
        ({0: 1, 1: 3, 2: 3, 3: 3}, 1, 3),  # the first that gets there
        ({0: 1, 1: 2, 2: 2, 3: 1}, 3, 1),  # none does: the last one
        ({0: 1, 1: 1, 2: 2, 3: 0}, 2, 2),  # the last one that had begun
        ({0: 2, 1: 0, 2: 0, 3: 0}, 0, 2),
    ],
)
def test_which_of_four_tries_becomes_the_context(opened: dict[int, int], sample: int, turn: int) -> None:
    at = players(lambda messages, key: f"reply {key.sample}", leaving(opened))
    context = asyncio.run(draw_context(at, GOAL, "", 3, KEY))
    assert (context.pending, context.turn, context.ended_by) == (f"user {sample}", turn, "")
    assert context.assistant_texts == [f"reply {sample}"] * (turn - 1)


def test_a_user_who_never_begins_is_named_with_its_goal() -> None:
    at = players(user=leaving({0: 0, 1: 0, 2: 0, 3: 0}))
    with pytest.raises(BadInput, match=r"left 4 times before saying anything \(goal a\)"):
        asyncio.run(draw_context(at, GOAL, "", 3, KEY))


def test_where_all_tries_fail_the_last_one_says_why() -> None:
    at = players(user=talker({0: invalid("a"), 1: invalid("b"), 2: invalid("c"), 3: invalid("d")}))
    context = asyncio.run(draw_context(at, GOAL, "", 3, KEY))
    assert (context.pending, context.ended_by) == (None, invalid("d"))


# --- what is lost ----------------------------------------------------------------------------------------------------


def test_each_lost_conversation_is_counted_by_its_reason() -> None:
    done = Conversation(GOAL).with_user("hi").with_reply(spoken("hello"))
    good, unscored = (done.with_end("window"), Score(1.0, {})), (done.with_end("window"), Score(None, {}))
    full, failed = (done.with_end(FULL), Score(None, {})), (done.with_end(invalid("policy")), Score(None, {}))
    lost = LostCounts().count([full, full, good, unscored, unscored, unscored, failed])
    assert lost == LostCounts(futures=7, invalid=3, unscored=3, context_full=2)
    assert lost.lost == 6
    lost.count_unplayed(4)
    assert lost == LostCounts(futures=11, invalid=7, unscored=3, context_full=2)
    lost.count_unplayed(5, context_full=True)
    assert lost == LostCounts(futures=16, invalid=12, unscored=3, context_full=7)


def test_without_a_context_all_futures_of_its_turn_are_lost() -> None:
    sim = simulation(talker(dict.fromkeys(range(4), invalid("shape"))), max_turns=2, equal_turns=True)
    for number in range(2):
        turn, lost = context_turn(1, number, [1, 2]), LostCounts()
        found = asyncio.run(sim.group(ScriptedModel(random_digits), GOAL, "", 0, number, lost))
        assert found.candidates == () and found.context.goal == GOAL
        futures = sim.candidates_at(turn) * 2
        assert lost == LostCounts(futures=futures, invalid=futures)
    assert sim.candidates_at(1) != sim.candidates_at(2)


@pytest.mark.parametrize("opens", [True, False])
def test_what_is_too_long_is_counted_as_such(opens: bool) -> None:
    """Either the context can be played and the policy cannot read it, or the user's prompt is too long already."""
    sim = simulation(talker({} if opens else dict.fromkeys(range(4), FULL)))
    lost = LostCounts()
    found = asyncio.run(sim.group(TooLong(random_digits), GOAL, "", 0, 0, lost))
    assert found.candidates == () and found.context.goal == GOAL
    assert lost == LostCounts(futures=6, invalid=6, context_full=6)


def test_candidates_that_a_server_did_not_give_are_lost_and_the_others_are_scored() -> None:
    lost = LostCounts()
    model = ScriptedModel(lambda messages, key: None if key.candidate == 1 else f"reply {key.candidate}")
    found = asyncio.run(simulation().group(model, GOAL, "", 0, 0, lost))
    assert [(candidate.reply.text, candidate.mr) for candidate in found.candidates] == [("reply 0", 0), ("reply 2", 2)]
    assert lost == LostCounts(futures=6, invalid=2)
