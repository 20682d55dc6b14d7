"""Conversations, forward sampling (Eq. 1) and the rollout callback, with scripted speakers."""

import asyncio
import math
import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace

import lightning as L
import pytest
import torch
from scripted import ScriptedModel, ScriptedUser, says, spoken
from stepping import trainer_with

from collab.callbacks.rollout import RolloutCallback
from collab.callbacks.rollout_metrics import conversation_values, group_values, means
from collab.chat.base import Sampling
from collab.config.schema import AgendaUserConfig, SamplerConfig
from collab.conversation import Conversation, Goal, Score
from collab.datamodules.base import GoalDataModule
from collab.datamodules.goals import GoalSplits
from collab.randomness import RngKey
from collab.rewards.metrics import AgendaInteractivity, Bleu, TokenPenalty
from collab.rewards.reward import ConversationReward
from collab.simulation.agenda import AgendaUser
from collab.simulation.conversation_loop import Players, draw_context, play, play_goals
from collab.simulation.multiturn import as_group, multiturn_reward
from collab.simulation.sampler import Simulation
from collab.simulation.schedule import context_turn, context_turns
from collab.simulation.user import UserTurn

# Eight words, so that n-gram counts are easy; an agenda of three items.
GOAL = Goal(
    "mill",
    "A note.",
    "we meet at noon by the old mill",
    {"title": "the walk", "preferences": {"tone": "warm", "audience": "hikers"}},
)
OTHER = Goal(
    "keys", "A note.", "Two keys lay by the gate. Ask Omar.", {"title": "lost keys", "preferences": {"tone": "brief"}}
)
OPEN = "What should the text include?"  # 5 words, gives one of the three items
ONE_WORD_OFF = "we meet at noon by the new mill"  # BLEU (7/8 * 5/7 * 4/6 * 3/5)^(1/4) = 0.25^(1/4); satisfies
BLEU_OF_ONE_WORD_OFF = 0.25**0.25
KEY = RngKey(1, split="train", goal="mill")


class Table:
    """A metric that looks its value up by the last message; not there, it is missing."""

    def __init__(self, values: dict[str, float]) -> None:
        self.values = values

    async def __call__(self, conversation: Conversation) -> float | None:
        return self.values.get(conversation.assistant_texts[-1])


NOTHING = ConversationReward({"zero": (1.0, Table({}))})


def talkative() -> ScriptedUser:
    return ScriptedUser(lambda conversation, key: f"user {conversation.turn}")


def players(script=None, user=None, max_turns: int = 5) -> Players:
    return Players(ScriptedModel(script or says("hm")), user or talkative(), Sampling(48), max_turns)


def open_context(turn: int, user_text: str = "user", replies=("hm",) * 9) -> Conversation:
    conversation = Conversation(GOAL)
    for j in range(1, turn):
        conversation = conversation.with_user(f"{user_text} {j}").with_reply(spoken(replies[j - 1]))
    return conversation.with_user(f"{user_text} {turn}")


def mr_of(context, candidates, *, at, reward=NOTHING, window=1, num_samples=1, key=KEY, paired=True):
    return asyncio.run(
        multiturn_reward(
            context,
            [spoken(text) for text in candidates],
            players=at,
            reward=reward,
            window=window,
            num_samples=num_samples,
            key=key,
            paired=paired,
        )
    )


# --- whole conversations ---------------------------------------------------------------------------------------------


def test_play_awaits_user_and_policy_in_turn_up_to_max_turns():
    at = players(lambda messages, key: f"re {messages[-1].content}", max_turns=3)
    done = asyncio.run(play(at, Conversation(GOAL, "be brief"), KEY))
    assert [(t.user, t.reply.text) for t in done.turns] == [(f"user {j}", f"re user {j}") for j in (1, 2, 3)]
    assert done.ended_by == "max_turns" and done.pending is None


def test_the_assistant_sees_the_system_prompt_and_never_the_goal():
    seen = []
    at = players(lambda messages, key: seen.append(messages) or "hm", max_turns=2)
    asyncio.run(play(at, Conversation(GOAL, "be brief"), KEY))
    assert [[m.role for m in messages] for messages in seen] == [
        ["system", "user"],
        ["system", "user", "assistant", "user"],
    ]
    assert not any("mill" in m.content for messages in seen for m in messages)


@pytest.mark.parametrize("reason", ["satisfied", "patience"])
def test_the_user_may_end_it(reason):
    user = ScriptedUser(lambda conversation, key: UserTurn("", reason) if conversation.turn == 3 else "go on")
    done = asyncio.run(play(players(user=user), Conversation(GOAL), KEY))
    assert (len(done.turns), done.ended_by, done.pending) == (2, reason, None)


def test_evaluation_plays_each_goal_a_number_of_times_in_order():
    at = players(lambda messages, key: f"{key.goal} {key.sample}", max_turns=1)
    done = asyncio.run(play_goals(at, [GOAL, OTHER], "", KEY, num_conversations=2))
    assert [c.assistant_texts for c in done] == [["mill 0"], ["mill 1"], ["keys 0"], ["keys 1"]]


# --- the window ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize(
    ("window", "turns", "ended_by"),
    [(0, 0, "window"), (1, 1, "window"), (2, 2, "window"), (3, 3, "max_turns"), (9, 3, "max_turns")],
)
def test_window_is_the_number_of_further_turns_at_most(window, turns, ended_by, num_samples):
    at = players(max_turns=5)
    [candidate] = mr_of(open_context(2), ["first"], at=at, window=window, num_samples=num_samples)
    futures = num_samples if window else 1
    assert len(candidate.futures) == len(candidate.scores) == futures
    for future in candidate.futures:
        assert future.turns[:2] == open_context(2).with_reply(spoken("first")).turns
        assert len(future.turns) == 2 + turns
        assert future.ended_by == ended_by
    assert len(at.policy.requests) == len(at.user.requests) == futures * turns


def test_window_after_the_last_turn_plays_nothing():
    at = players(max_turns=2)
    [candidate] = mr_of(open_context(2), ["first"], at=at, window=2)
    assert not at.policy.requests and not at.user.requests
    assert candidate.futures[0].ended_by == "max_turns"


def test_future_ends_when_the_user_leaves():
    user = ScriptedUser(lambda conversation, key: UserTurn("", "satisfied"))
    [candidate] = mr_of(open_context(1), ["first"], at=players(user=user), window=3)
    assert [f.ended_by for f in candidate.futures] == ["satisfied"]
    assert candidate.futures[0].assistant_texts == ["first"]


def test_the_window_does_not_make_a_turn_the_last_one():
    """The agenda user asks for the final text at `max_turns` only, wherever the window ends."""

    def last_user_message(max_turns: int) -> str:
        at = players(says(OPEN), AgendaUser(AgendaUserConfig(), max_turns), max_turns)
        [candidate] = mr_of(open_context(1), [OPEN], at=at, window=1)
        assert candidate.futures[0].ended_by == ("max_turns" if max_turns == 2 else "window")
        return candidate.futures[0].turns[-1].user

    assert "final text" in last_user_message(2) or "finished text" in last_user_message(2)
    assert "final" not in last_user_message(3) and "finished" not in last_user_message(3)


# --- Eq. 1: the mean over futures ------------------------------------------------------------------------------------


def candidates_and_samples(values: dict[str, float]):
    """Candidates "a" and "b" with three futures each, whose last message is "<sample>"; scores by table."""
    reward = ConversationReward({"table": (2.0, Table(values))})
    at = players(lambda messages, key: f"{messages[1].content} {key.sample}")
    return mr_of(open_context(1), ["a", "b"], at=at, reward=reward, num_samples=3)


def test_mr_is_the_mean_over_futures():
    table = {"a 0": 0.1, "a 1": 0.4, "a 2": 0.7, "b 0": 1.0, "b 1": 0.0, "b 2": 0.2}
    a, b = candidates_and_samples(table)
    assert (a.mr, b.mr) == pytest.approx((2 * 1.2 / 3, 2 * 1.2 / 3))
    assert [score.reward for score in b.scores] == [2.0, 0.0, 0.4]
    assert a.reply.text == "a" and b.reply.text == "b"


def test_future_without_a_score_is_left_out_of_the_mean():
    a, b = candidates_and_samples({"a 0": 0.1, "a 2": 0.7, "b 1": 0.0})
    assert a.mr == pytest.approx(2 * 0.8 / 2)
    assert b.mr == 0.0  # a value, not a missing one
    assert [score.reward for score in a.scores] == [0.2, None, 1.4]


def test_candidate_without_any_scored_future_leaves_the_group():
    a, b = candidates_and_samples({"b 0": 0.5})
    assert a.mr is None and b.mr == 1.0
    group = as_group(open_context(1), [a, b])
    assert group.candidates == (b,)
    assert group.context == open_context(1)


def test_with_no_window_the_response_itself_is_scored():
    reward = ConversationReward({"table": (2.0, Table({"a": 0.25}))})
    a, b = mr_of(open_context(1), ["a", "b"], at=players(), reward=reward, window=0, num_samples=3)
    assert (a.mr, b.mr) == (0.5, None)


def test_multiturn_reward_needs_neither_torch_nor_lightning():
    code = "import sys, collab.simulation.multiturn; print({'torch', 'lightning', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


# --- randomness ------------------------------------------------------------------------------------------------------


def draws_of_users(paired: bool) -> list[list[str]]:
    """For each of eight candidates, all alike, what its user says in two futures of two turns."""
    user = ScriptedUser(lambda conversation, key: f"{key.stream().random():.9f}")
    found = mr_of(open_context(2), ["same"] * 8, at=players(user=user), window=2, num_samples=2, paired=paired)
    return [[turn.user for future in c.futures for turn in future.turns[2:]] for c in found]


def test_paired_candidates_face_the_same_user():
    draws = draws_of_users(paired=True)
    assert draws == [draws[0]] * 8
    assert len(set(draws[0])) == 4  # another draw at each turn of each future


def test_unpaired_candidates_face_users_of_their_own():
    draws = draws_of_users(paired=False)
    assert len({draw for of_candidate in draws for draw in of_candidate}) == 8 * 4


@pytest.mark.parametrize("paired", [True, False])
def test_the_policys_draws_are_never_shared(paired):
    at = players()
    mr_of(open_context(2), ["same"] * 8, at=at, window=2, num_samples=2, paired=paired)
    assert len(set(at.policy.requests)) == len(at.policy.requests) == 8 * 2 * 2


def test_pairing_holds_while_the_candidates_differ():
    """What the user says follows from the candidate; how it says it does not."""
    at = players(user=AgendaUser(AgendaUserConfig(), 5))
    a, b = mr_of(open_context(1), ["Hello there.", "Good day to you."], at=at, window=1, num_samples=12)
    assert [f.turns[1].user for f in a.futures] == [f.turns[1].user for f in b.futures]
    assert len({f.turns[1].user for f in a.futures}) > 1


@pytest.mark.parametrize(("paired", "users"), [(True, 1), (False, 3)])
def test_pairing_is_the_simulations(paired, users):
    user = ScriptedUser(lambda conversation, key: f"{key.stream().random():.9f}")
    rollout = RolloutCallback(simulation(user=user, paired=paired, num_samples=1, window=1), "")
    groups = asyncio.run(rollout.groups(ScriptedModel(says("hm")), [GOAL] * 3, 0, range(3)))
    [first] = [group for group in groups if group.context.turn == 1]
    assert len({candidate.futures[0].turns[1].user for candidate in first.candidates}) == users


def test_a_goal_that_is_stored_starts_from_its_stored_context():
    """Nothing is played to get there: the first thing that the policy says is a candidate."""
    stored = open_context(2)
    contexts = {(GOAL.prompt, 2): stored}
    sim = simulation(max_turns=3, num_samples=1, window=1, contexts=contexts)
    groups = asyncio.run(RolloutCallback(sim, "").groups(ScriptedModel(says("hm")), [GOAL] * 3, 0, range(3)))
    by_turn = {group.context.turn: group.context for group in groups}
    assert by_turn.keys() == {1, 2, 3}
    assert (by_turn[2].turns, by_turn[2].pending) == (stored.turns, stored.pending)
    assert by_turn[3].assistant_texts == ["hm", "hm"]  # played: there is no stored one


def test_short_windows_are_filled_with_candidates_of_as_many_turns():
    at = [simulation(equal_turns=True, max_turns=4, window=2, num_samples=1).candidates_at(n) for n in (1, 2, 3, 4)]
    assert at == [3, 3, 4, 9]  # three windows of three turns each are nine turns: 3 x 3, 3 x 3, 4 x 2, 9 x 1
    assert simulation(equal_turns=True).candidates_at(3) == 9  # two samples of one turn: 3 x (1 + 2 x 1)
    assert [simulation(equal_turns=True, window=0).candidates_at(n) for n in (1, 3)] == [3, 3]
    rollout = RolloutCallback(simulation(equal_turns=True), "")
    groups = asyncio.run(rollout.groups(ScriptedModel(random_words), [GOAL] * 3, 0, range(3)))
    assert {g.context.turn: len(g.candidates) for g in groups} == {1: 3, 2: 3, 3: 9}


def random_words(messages, key) -> str:
    return " ".join(f"w{word}" for word in key.stream().integers(100, size=4))


def simulation(**changes) -> Simulation:
    values = {
        "user": AgendaUser(AgendaUserConfig(), 3),
        "reward": ConversationReward({"bleu": (1.0, Bleu())}),
        "sampling": Sampling(48),
        "max_turns": 3,
        "seed": 1,
        "make_engine": lambda lm, tokenizer: None,
    }
    sampler = {"window": 1, "num_samples": 2, "group_size": 3}
    for field in fields(SamplerConfig):
        if field.name in changes and field.name != "contexts":  # those of the simulation are loaded already
            sampler[field.name] = changes.pop(field.name)
    return Simulation(**(values | {"sampler": SamplerConfig(**sampler)} | changes))


def test_groups_do_not_depend_on_what_else_is_played_nor_on_who_is_served_first():
    rollout = RolloutCallback(simulation(), "be brief")

    async def together(hurry) -> list:
        return await rollout.groups(ScriptedModel(random_words, hurry=hurry), [GOAL, OTHER, GOAL], 4, range(10, 13))

    async def alone() -> list:
        one_by_one = [
            await rollout.groups(ScriptedModel(random_words), [goal], 4, [10 + i])
            for i, goal in enumerate((GOAL, OTHER, GOAL))
        ]
        return [group for [group] in one_by_one]

    first = asyncio.run(together(lambda key: 0))
    assert first == asyncio.run(together(lambda key: 7 * (key.candidate or 0) % 5 + key.sample))
    assert first == asyncio.run(alone())
    assert first[0] != first[2]  # the same goal twice in one step: other draws
    texts = [candidate.reply.text for group in first for candidate in group.candidates]
    assert len(set(texts)) == len(texts)


def test_a_goal_that_comes_twice_in_a_step_meets_other_users_and_replies():
    rollout = RolloutCallback(simulation(group_size=1), "")
    groups = asyncio.run(rollout.groups(ScriptedModel(random_words), [GOAL] * 6, 0, range(6)))
    assert Counter(group.context.turn for group in groups) == {1: 2, 2: 2, 3: 2}
    said = [text for g in groups for text in (*g.context.assistant_texts, g.candidates[0].reply.text)]
    assert len(set(said)) == len(said)


def test_draws_change_with_seed_and_step():
    def texts(step: int = 0, **changes) -> list[str]:
        rollout = RolloutCallback(simulation(**changes), "")
        [group] = asyncio.run(rollout.groups(ScriptedModel(random_words), [GOAL], step, [0]))
        return [candidate.reply.text for candidate in group.candidates]

    assert texts() == texts()
    assert not set(texts()) & set(texts(step=1))
    assert not set(texts()) & set(texts(seed=2))


# --- contexts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_turns", [1, 2, 3, 5])
def test_every_turn_is_drawn_equally_often_but_the_last_if_asked_to(max_turns):
    cycles = 40
    drawn = [context_turn(3, number, context_turns(max_turns)) for number in range(cycles * max_turns)]
    assert Counter(drawn) == dict.fromkeys(range(1, max_turns + 1), cycles)
    orders = {tuple(drawn[i : i + max_turns]) for i in range(0, len(drawn), max_turns)}
    assert len(orders) > 1 or max_turns == 1
    turns = context_turns(max_turns, last_turns=3)
    drawn = [context_turn(3, number, turns) for number in range(cycles * len(turns))]
    assert Counter(drawn) == {**dict.fromkeys(range(1, max_turns), cycles), max_turns: 3 * cycles}


def test_context_is_played_on_policy_up_to_the_turn_that_waits():
    at = players(lambda messages, key: f"re {messages[-1].content}")
    context = asyncio.run(draw_context(at, GOAL, "be brief", 3, KEY))
    assert (context.turn, context.pending, context.ended_by) == (3, "user 3", "")
    assert context.assistant_texts == ["re user 1", "re user 2"]
    assert context.system_prompt == "be brief"
    assert len(at.policy.requests) == 2


def test_chat_that_ends_early_is_played_again_with_other_draws():
    def script(conversation: Conversation, key: RngKey) -> str | UserTurn:
        return UserTurn("", "satisfied") if conversation.turn == 2 and key.sample < 2 else "go on"

    at = players(random_words, ScriptedUser(script))
    context = asyncio.run(draw_context(at, GOAL, "", 3, KEY))
    assert context.turn == 3 and context.pending == "go on"
    assert len(set(at.policy.requests)) == len(at.policy.requests)
    # Of the tries at once, 1 fails, 2 is the first that gets there.
    spoken = [random_words([], key) for key in at.policy.requests if key.sample == 2]
    assert context.assistant_texts == spoken and len(spoken) == 2


def test_no_other_chat_is_played_where_the_first_gets_there():
    at = players(random_words)
    asyncio.run(draw_context(at, GOAL, "", 3, KEY))
    assert {key.sample for key in at.policy.requests} == {0}


def test_context_falls_back_to_the_last_turn_that_was_opened():
    def script(conversation: Conversation, key: RngKey) -> str | UserTurn:
        return f"user {conversation.turn}" if conversation.turn < 3 else UserTurn("", "patience")

    context = asyncio.run(draw_context(players(user=ScriptedUser(script)), GOAL, "", 5, KEY))
    assert (context.turn, context.pending, context.ended_by) == (2, "user 2", "")
    assert context.assistant_texts == ["hm"]


# --- the whole callback, in a Lightning run --------------------------------------------------------------------------


class Listener(L.LightningModule):
    """A policy module that keeps what it is given to learn from."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = torch.nn.Module()
        self.policy.lm = torch.nn.Linear(1, 1)
        self.tokenizer = "the tokenizer"
        self.automatic_optimization = False
        self.groups: list = []

    def training_step(self, batch, batch_idx) -> None:
        self.groups.append(batch.groups)

    def validation_step(self, batch, batch_idx) -> None:
        pass

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def data_of(goals: list[Goal], goals_per_step: int, max_steps: int) -> GoalDataModule:
    return GoalDataModule(GoalSplits(train=goals, val=goals, test=goals), goals_per_step, max_steps, seed=1)


def by_hand(positions: list[int]):
    """The script: what is said depends on where the group's context is, which candidate and which future it is."""

    def script(messages, key) -> str:
        said = [message.content for message in messages if message.role == "assistant"]
        if not key.split.startswith("train/"):
            return OPEN  # on the way to a context, and in the validation at the end
        if positions[int(key.split.removeprefix("train/"))] == 1:
            if not said:
                return (OPEN, ONE_WORD_OFF)[key.candidate]
            return (GOAL.reference, ONE_WORD_OFF)[key.sample]
        return (ONE_WORD_OFF, "Which tone should the text have?")[key.candidate]

    return script


def test_mr_through_the_callback_equals_the_number_computed_by_hand():
    """Two turns; two groups, one at each; two candidates with two futures of at most one turn.

    R* = 2 bleu - 0.01 tokens + 0.6 interactivity.
    """
    positions = [context_turn(1, number, [1, 2]) for number in range(2)]
    assert sorted(positions) == [1, 2]
    made = []

    def make_engine(lm, tokenizer) -> ScriptedModel:
        made.append((lm, tokenizer))
        return ScriptedModel(by_hand(positions), lm=lm)

    reward = ConversationReward(
        {
            "bleu": (2.0, Bleu()),
            "token_penalty": (-1.0, TokenPenalty(0.01)),
            "interactivity": (0.6, AgendaInteractivity()),
        }
    )
    rollout = RolloutCallback(
        simulation(
            user=AgendaUser(AgendaUserConfig(), 2),
            reward=reward,
            max_turns=2,
            group_size=2,
            make_engine=make_engine,
        ),
        "be brief",
    )
    module, trainer = Listener(), trainer_with([rollout])
    trainer.fit(module, data_of([GOAL], goals_per_step=2, max_steps=1))
    [groups] = module.groups
    assert made == [(module.policy.lm, "the tokenizer")]
    assert [group.context.turn for group in groups] == positions
    first, second = sorted(groups, key=lambda group: group.context.turn)

    # Turn 1, candidate 0 asks (5 tokens, the note: half of the agenda, since two preferences weigh as much as it),
    # then writes 8 words.
    #   future 0: 2 * 1            - 0.13 + 0.6 * 1/2 = 2.17
    #   future 1: 2 * 0.70710678   - 0.13 + 0.6 * 1/2 = 1.58421356
    # Turn 1, candidate 1 writes 8 words; the user is satisfied, there is no second turn.
    #   both:     2 * 0.70710678   - 0.08             = 1.33421356
    # Turn 2, after a question (5 tokens, the note):
    #   candidate 0 writes 8 words: 2 * 0.70710678 - 0.13 + 0.6 * 1/2 = 1.58421356
    #   candidate 1 asks on (6 tokens): nothing is extracted, and the questions led nowhere: 0 - 0.11 + 0
    by_hand_first = [(2.17 + 1.58421356) / 2, 1.33421356]
    by_hand_second = [1.58421356, -0.11]
    assert [c.mr for c in first.candidates] == pytest.approx(by_hand_first)
    assert [c.mr for c in second.candidates] == pytest.approx(by_hand_second)
    assert [s.reward for s in first.candidates[0].scores] == pytest.approx([2.17, 1.58421356])
    assert [f.ended_by for f in first.candidates[1].futures] == ["satisfied"] * 2

    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    everything = [*by_hand_first, *by_hand_second]
    assert logged["train/mr"] == pytest.approx(sum(everything) / 4)
    # Half the distance of two values is their standard deviation.
    spreads = [(one - other) / 2 for one, other in (by_hand_first, by_hand_second)]
    assert logged["train/mr_spread"] == pytest.approx(sum(spreads) / 2)
    bleus = [(1 + BLEU_OF_ONE_WORD_OFF) / 2, BLEU_OF_ONE_WORD_OFF, BLEU_OF_ONE_WORD_OFF, 0]
    assert logged["train/bleu"] == pytest.approx(sum(bleus) / 4)
    assert logged["train/bleu_spread"] == pytest.approx(2 * ((bleus[0] - bleus[1]) / 2 + (bleus[2] - bleus[3]) / 2) / 2)
    assert logged["train/interactivity"] == pytest.approx((1 / 2 + 0 + 1 / 2 + 0) / 4)
    assert logged["train/interactivity_spread"] == pytest.approx(0.6 * (1 / 4 + 1 / 4) / 2)
    assert logged["train/token_penalty"] == pytest.approx((0.13 + 0.08 + 0.13 + 0.11) / 4)
    assert logged["train/token_penalty_spread"] == pytest.approx((0.025 + 0.01) / 2)
    assert logged["train/token_penalty_saturated"] == 0
    assert logged["train/context_turn"] == 1.5
    assert logged["train/earlier_contexts"] == 0
    assert logged["train/reply_tokens"] == pytest.approx((5 + 8 + 8 + 6) / 4)
    assert logged["train/assistant_tokens"] == pytest.approx((13 + 13 + 8 + 8 + 13 + 13 + 11 + 11) / 8)
    assert logged["train/turns"] == pytest.approx((2 + 2 + 1 + 1 + 2 + 2 + 2 + 2) / 8)
    assert logged["train/cut_replies"] == 0


def test_a_run_draws_every_turn_equally_often_and_counts_cut_replies():
    rollout = RolloutCallback(
        simulation(
            user=talkative(),
            sampling=Sampling(3),
            make_engine=lambda lm, tokenizer: ScriptedModel(random_words, lm=lm),
        ),
        "",
    )
    module, trainer = Listener(), trainer_with([rollout])
    trainer.fit(module, data_of([GOAL, OTHER], goals_per_step=2, max_steps=6))
    positions = [group.context.turn for groups in module.groups for group in groups]
    assert Counter(positions) == {1: 4, 2: 4, 3: 4}
    assert float(trainer.callback_metrics["train/cut_replies"]) == 1
    contexts = [tuple(group.context.messages()) for groups in module.groups for group in groups if group.context.turns]
    assert len(set(contexts)) == len(contexts)


def test_contexts_that_the_user_ended_before_their_turn_are_counted():
    positions = [context_turn(seed=1, number=number, turns=[1, 2, 3]) for number in range(3)]
    assert sorted(positions) == [1, 2, 3]
    rollout = RolloutCallback(
        simulation(
            user=AgendaUser(AgendaUserConfig(patience=1), 3), make_engine=lambda lm, t: ScriptedModel(says("Hm."))
        ),
        "",
    )
    module, trainer = Listener(), trainer_with([rollout])
    trainer.fit(module, data_of([GOAL], goals_per_step=3, max_steps=1))
    [groups] = module.groups
    assert [group.context.turn for group in groups] == [1, 1, 1]  # the user leaves after the first empty reply
    assert float(trainer.callback_metrics["train/earlier_contexts"]) == pytest.approx(2 / 3)


def test_validation_and_test_play_whole_conversations():
    rollout = RolloutCallback(
        simulation(make_engine=lambda lm, tokenizer: ScriptedModel(says(OPEN, GOAL.reference), lm=lm)), "", 2
    )
    module, trainer = Listener(), trainer_with([rollout])
    trainer.fit(module, data_of([GOAL], goals_per_step=1, max_steps=1))
    assert float(trainer.callback_metrics["val/reward"]) == 1  # asks, writes, satisfies
    assert float(trainer.callback_metrics["val/turns"]) == 2
    assert float(trainer.callback_metrics["val/assistant_tokens"]) == 13
    trainer.test(module, data_of([GOAL, OTHER], goals_per_step=1, max_steps=1), verbose=False)
    assert [conversation.goal.id for conversation, _ in rollout.tested] == ["mill", "mill", "keys", "keys"]
    assert [score.reward for _, score in rollout.tested[:2]] == [1.0, 1.0]
    assert [conversation.ended_by for conversation, _ in rollout.tested] == ["satisfied"] * 2 + ["max_turns"] * 2


def test_evaluation_draws_are_those_of_the_goal_alone():
    async def conversations(goals, split="test") -> dict:
        scored = await simulation().conversations(ScriptedModel(random_words), goals, "", split, 2)
        return {(c.goal.id, i % 2): c for i, (c, _) in enumerate(scored)}

    both, one = asyncio.run(conversations([GOAL, OTHER])), asyncio.run(conversations([OTHER]))
    assert all(both[name] == one[name] for name in one)
    assert both["keys", 0] != both["keys", 1]
    assert asyncio.run(conversations([OTHER], "val")) != one


# --- what is logged --------------------------------------------------------------------------------------------------


def groups_of(reward: ConversationReward) -> list:
    candidates = mr_of(open_context(1), ["a b c", "a b c d e"], at=players(), reward=reward, window=0)
    return [as_group(open_context(1), candidates)]


@pytest.mark.parametrize(("coefficient", "saturated"), [(0.1, 0), (0.25, 0.5), (0.5, 1)])
def test_saturated_share(coefficient, saturated):
    """Three and five tokens: at 0.25 only the longer one is beyond the bound."""
    groups = groups_of(ConversationReward({"token_penalty": (-1.0, TokenPenalty(coefficient))}))
    assert means(group_values(groups, {"token_penalty": -1.0}))["token_penalty_saturated"] == saturated


def test_saturated_share_of_whole_conversations():
    done = replace(open_context(2), pending=None)
    scores = [Score(0.0, {"token_penalty": value}) for value in (1.0, 0.99, 0.2, 1.0)]
    scored = [(done, score) for score in [*scores, Score(None, {"token_penalty": None})]]
    assert means(conversation_values(scored, ["token_penalty"]))["token_penalty_saturated"] == 0.5
    assert "token_penalty_saturated" not in conversation_values([(done, Score(0.5, {"judge": 0.5}))], ["judge"])


def test_cut_replies_are_counted_over_all_of_a_future():
    at = replace(players(says("one two three")), sampling=Sampling(2))
    candidates = mr_of(open_context(1), ["whole", "whole"], at=at, window=1)
    candidates = [replace(candidate, mr=0.0) for candidate in candidates]
    assert means(group_values([as_group(open_context(1), candidates)], {}))["cut_replies"] == 0.5


def test_means_leave_missing_values_out_and_are_nan_where_nobody_has_one():
    reward = ConversationReward({"judge": (1.0, Table({"a b c": 0.5}))})
    metrics = means(group_values(groups_of(reward), {"judge": 1.0}))
    assert (metrics["mr"], metrics["judge"]) == (0.5, 0.5)
    metrics = means(group_values(groups_of(NOTHING), {"zero": 1.0}))
    assert math.isnan(metrics["mr"]) and math.isnan(metrics["zero"])


def test_means_of_conversations_leave_missing_values_out():
    done = replace(open_context(2), pending=None)
    scored = [(done, Score(0.5, {"judge": 0.5})), (done, Score(None, {"judge": None}))]
    found = means(conversation_values(scored, ["judge"]))
    assert (found["reward"], found["judge"], found["turns"], found["assistant_tokens"]) == (0.5, 0.5, 1, 1)
