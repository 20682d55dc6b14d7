"""Tools of a task: calls are read, run in the sandbox, and their state belongs to one conversation alone."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from composing import load_config
from scripted import ScriptedModel, says

from collab.chat.base import Sampling
from collab.config.checks import check
from collab.config.schema import AgendaUserConfig, Config
from collab.conversation import Conversation, Goal, Reply
from collab.datamodules.goals import load_splits
from collab.parsing.agenda_items import manner_of
from collab.parsing.tool_calls import Call, calls_in, response
from collab.randomness import RngKey
from collab.rewards.reward import ConversationReward
from collab.rewards.tools import FinalState
from collab.sandbox.tools import run_tools
from collab.simulation.agenda import AgendaUser
from collab.simulation.conversation_loop import Players, draw_context, play
from collab.simulation.multiturn import multiturn_reward
from collab.simulation.sampler import Simulation
from collab.simulation.synthesis import synthesise
from collab.simulation.tools import ToolUser, heard
from collab.simulation.user import UserTurn
from collab.util.errors import BadInput

CONFIG: Config = load_config("train", ["task=kiln"])
TOOLS = CONFIG.task.tools
GOAL: Goal = load_splits(CONFIG.task).test[0]
REWARD = ConversationReward({"booked": (1.0, FinalState())})


def call(tool: str, /, **arguments: str) -> str:
    return f"<tool_call>\n{json.dumps(dict(name=tool, arguments=arguments))}\n</tool_call>"


def wished(**other: str) -> dict[str, str]:
    """The arguments of the booking that the goal wants, some of them changed."""
    before, after = GOAL.metadata["state"], GOAL.metadata["wanted"]
    ((day, time, entry),) = [(d, t, e) for d, slots in after.items() for t, e in slots.items() if t not in before[d]]
    return {"day": day, "time": time, **entry, **other}


def players(*texts: str, max_turns: int = 8) -> Players:
    user = ToolUser(AgendaUser(AgendaUserConfig(), max_turns), TOOLS)
    return Players(ScriptedModel(says(*texts), cuts=False), user, Sampling(200), max_turns)


def test_calls_are_read_from_a_message():
    assert calls_in("Which day do you want?") == []
    text = f"Let me look. {call('free', day='Monday')} {call('book', day='Friday')}"
    assert calls_in(text) == [Call("free", {"day": "Monday"}), Call("book", {"day": "Friday"})]


@pytest.mark.parametrize("text", ["{", "[]", '{"name": 3}', '{"name": "free", "arguments": [1]}', '{"arguments": {}}'])
def test_a_call_that_cannot_be_read_says_why(text):
    for whole in (f"<tool_call>{text}</tool_call>", f"<tool_call>{text}"):
        (found,) = calls_in(whole)
        assert found.name == "" and "this is no call" in found.problem


def test_half_a_surrogate_pair_in_a_result_can_be_written():
    (found,) = calls_in('<tool_call>{"name": "\\ud83d", "arguments": {}}</tool_call>')
    assert response([{"error": f"there is no tool {found.name}"}]).encode("utf-8")


def test_the_system_prompts_list_the_tools():
    for prompt in (CONFIG.task.system_prompt, CONFIG.task.proactive_prompt):
        listed = [json.loads(line) for line in prompt.splitlines() if line.startswith('{"type"')]
        assert [tool["function"]["name"] for tool in listed] == ["free", "book", "cancel"]
        assert listed[0]["function"]["parameters"]["required"] == ["day"]
    assert "<tools>" not in load_config("train", ["task=doc_edit"]).task.system_prompt


def test_tools_run_in_order_on_a_copy_and_errors_change_nothing():
    state: dict[str, Any] = {"n": 1}
    code = (
        "import os\n"
        "def add(state, by):\n    state['n'] += by\n    return state['n']\n"
        "def spoil(state):\n    state['n'] = 0\n    raise RuntimeError('no')\n"
        "def where(state):\n    return sorted(os.listdir('.'))\n"
    )
    calls = [Call("add", {"by": 2}), Call("spoil", {}), Call("add", {"by": "x"}), Call("drop", {}), Call("", {}, "bad"),
             Call("where", {}), Call("add", {"by": 4})]  # fmt: skip
    after, results = asyncio.run(run_tools(code, ["add", "spoil", "where"], state, calls))
    assert (state, after) == ({"n": 1}, {"n": 7})
    assert results[0] == 3 and results[6] == 7 and results[5] == []  # an empty folder of the sandbox
    assert results[1] == {"error": "RuntimeError: no"} and "TypeError" in results[2]["error"]
    assert results[3] == {"error": "there is no tool drop. The tools are add, spoil, where"}
    assert results[4] == {"error": "bad"}


def test_a_tool_that_ends_its_process_is_an_error():
    code = "import os\ndef leave(state):\n    os._exit(0)\n"
    after, results = asyncio.run(run_tools(code, ["leave"], {"n": 1}, [Call("leave", {})]))
    assert after == {"n": 1} and results == [{"error": "the tool did not end well (ended early)"}]


def test_a_good_booking_ends_the_conversation_and_earns_the_reward():
    asked = "When should it be? Whose name is it under?"
    done = asyncio.run(play(players(asked, call("book", **wished()), "It is booked."), Conversation(GOAL), RngKey(1)))
    assert done.ended_by == "satisfied" and len(done.turns) == 3
    assert wished()["day"] in done.turns[1].user and wished()["name"] in done.turns[1].user  # asked, so told
    assert json.loads(done.turns[2].user.splitlines()[1]) == {"booked": wished()["time"]}
    assert done.state == GOAL.metadata["wanted"] and GOAL.metadata["state"] != done.state
    assert asyncio.run(REWARD(done)).reward == 1.0
    assert [turn.reply.text for turn in heard(done).turns] == [asked, "It is booked."]  # what the user answers to


def test_the_user_knows_its_last_turn_after_calls():
    seen = []

    class Told(AgendaUser):
        async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
            seen.append((conversation.turn, len(conversation.turns)))
            return await super().respond(conversation, key)

    look = call("free", day="Monday")
    both = players("When should it be?", look, look, "It is free.", max_turns=5)
    both = replace(both, user=ToolUser(Told(AgendaUserConfig(), 5), TOOLS))
    done = asyncio.run(play(both, Conversation(GOAL), RngKey(1)))
    assert seen == [(1, 0), (2, 1), (5, 2)]
    assert done.turns[4].user.endswith(manner_of(GOAL).finals)


def test_another_booking_does_not():
    wrong = call("book", **wished(firing="raku" if wished()["firing"] != "raku" else "glaze"))
    done = asyncio.run(play(players(wrong, "It is booked.", max_turns=2), Conversation(GOAL), RngKey(1)))
    assert done.ended_by == "max_turns" and asyncio.run(REWARD(done)).reward == 0.0
    last = asyncio.run(play(players(call("book", **wished()), max_turns=1), Conversation(GOAL), RngKey(1)))
    assert asyncio.run(REWARD(last)).reward == 0.0  # nobody has executed it


def test_two_futures_of_a_candidate_do_not_see_each_others_bookings():
    """The context holds a booking. Of two futures of one candidate one takes it back, and one leaves it."""
    mine = wished()
    cancel = call("cancel", day=mine["day"], time=mine["time"], name=mine["name"])

    def policy(messages: Any, key: RngKey) -> str:
        if len([m for m in messages if m.role == "assistant"]) < 2:
            return call("book", **mine)
        return cancel if key.sample == 0 else call("free", day=mine["day"])

    user = ToolUser(AgendaUser(AgendaUserConfig(), 8), TOOLS)
    both = Players(ScriptedModel(policy, cuts=False), user, Sampling(200), 8)

    async def futures() -> Any:
        context = await draw_context(both, GOAL, "", 2, RngKey(1))
        held = json.dumps(context.state)
        (candidate,) = await multiturn_reward(
            context, [Reply(call("free", day=mine["day"]))], players=both, reward=REWARD, window=2, num_samples=2,
            key=RngKey(1),
        )  # fmt: skip
        assert json.dumps(context.state) == held
        return context, candidate

    context, candidate = asyncio.run(futures())
    assert context.state == GOAL.metadata["wanted"]
    cancelled, left = candidate.futures
    assert [score.reward for score in candidate.scores] == [0.0, 1.0] and candidate.mr == 0.5
    assert cancelled.state == GOAL.metadata["state"] and left.state == GOAL.metadata["wanted"]
    assert "cancelled" in cancelled.turns[-1].user and "free" in left.turns[-1].user


def test_a_stored_conversation_gets_its_state_from_its_calls():
    said = [("Hi", call("book", **wished())), ("ok", "Done."), ("Thanks", "Anything else?")]
    chat = Conversation(GOAL)
    for user, reply in said:
        chat = chat.with_user(user).with_reply(Reply(reply))
    turn = asyncio.run(players().user.respond(chat, RngKey(1)))
    assert (
        chat.state is None
        and asyncio.run(FinalState()(chat)) is None
        and (turn.end, turn.state) == ("satisfied", GOAL.metadata["wanted"])
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("task.tools.code='def free(state): pass'", "task.tools.functions has book, and task.tools.code defines free"),
        ("task.tools.functions.free=1", "task.tools.functions.free must have a description, and parameters"),
        ("task.proactive_prompt=''", "task.proactive_prompt is empty"),
        ("task.tools.code='def'", "task.tools.code is not Python"),
        ("~task.tools.functions.free.parameters", "task.tools.functions.free must have a description, and parameters"),
    ],
)
def test_tools_without_code_are_refused(change, said):
    with pytest.raises(BadInput, match=said.replace("(", r"\(")):
        check(load_config("train", ["task=kiln", change]))


def test_no_potter_books_in_two_splits_and_each_goal_can_be_met():
    splits = load_splits(CONFIG.task)
    assert [len(goals) for goals in (splits.train, splits.val, splits.test)] == [24, 6, 12]
    for goal in (*splits.train, *splits.val, *splits.test):
        before, after = goal.metadata["state"], goal.metadata["wanted"]
        assert sum(map(len, after.values())) == sum(map(len, before.values())) + 1


@pytest.mark.slow  # programs of the sandbox take long
def test_a_synthesis_goes_on_with_the_state_of_the_future_that_it_follows():
    """The best candidate books; what follows is the user's message in one of its futures, with that future's state."""
    config = load_config("synthesize", ["task=kiln", "sampler.window=2", "sampler.num_samples=1", "judge=none"])

    def policy(messages: Any, key: RngKey) -> str:
        replies = sum(message.role == "assistant" for message in messages)
        return call("book", **wished()) if not replies else "It is booked."

    both = players()
    simulation = Simulation(both.user, REWARD, both.sampling, 8, config.sampler, 1, lambda lm, tokenizer: None)
    engine = ScriptedModel(policy, cuts=False)
    made = asyncio.run(synthesise(simulation, engine, GOAL, system_prompt="", proactive_prompt="", key=RngKey(1)))
    assert made is not None and [turn.context.state for turn in made.turns] == [
        GOAL.metadata["state"],
        GOAL.metadata["wanted"],
    ]
