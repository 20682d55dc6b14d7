"""Environments of the package verifiers as tasks, and a task of ours as one. They run where verifiers is installed."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from composing import load_config
from fault_server import FaultServer
from marks import slow
from scripted import ScriptedModel, good_collaborator, says

from collab.app.preflight import check_players
from collab.chat.base import Sampling
from collab.config.schema import AgendaUserConfig, VerifiersUserConfig
from collab.conversation import Conversation, Goal, Message, Reply
from collab.datamodules.goals import GoalSplits, load_splits
from collab.randomness import RngKey
from collab.rewards.reward import ConversationReward
from collab.rewards.verifiers_env import RubricReward
from collab.simulation.agenda import AgendaUser
from collab.simulation.conversation_loop import Players, draw_context, play
from collab.simulation.multiturn import multiturn_reward
from collab.simulation.verifiers_env import VerifiersUser
from collab.util.errors import BadInput

vf = pytest.importorskip("verifiers")

REWARD = ConversationReward({"rubric": (1.0, RubricReward())})

# A number is to be guessed: the environment counts the guesses in its state, in place, and ends when it is found.
GUESSING = """
import verifiers as vf
from datasets import Dataset


class Guessing(vf.MultiTurnEnv):
    async def setup_state(self, state):
        state["guesses"] = []
        return state

    async def env_response(self, messages, state, **kwargs):
        guess = messages[-1].content
        if guess == "break":
            raise vf.InfraError("broken")
        state["guesses"].append(guess)
        if guess == state["answer"]:
            state["final_env_response"] = [vf.UserMessage(content="found")]
            return state["final_env_response"]
        return [vf.UserMessage(content=f"{len(state['guesses'])} wrong: {' '.join(state['guesses'])}")]


def found(state):
    return float(state["answer"] in state["guesses"])


def said(completion):
    return float(sum(message.role == "assistant" for message in completion))


def load_environment(size=10, held_out=0, system_prompt=None, tools=False):
    def rows(count):
        if not count:
            return None
        return Dataset.from_list([{"question": f"Guess {n}.", "answer": str(n)} for n in range(count)])

    rubric = vf.Rubric(funcs=[found, said], weights=[1.0, 0.01])
    if tools:
        return vf.ToolEnv(tools=[found], dataset=rows(size), rubric=rubric)
    return Guessing(
        dataset=rows(size), eval_dataset=rows(held_out), system_prompt=system_prompt, rubric=rubric, max_turns=5
    )
"""
ECHO = """
import verifiers as vf
from datasets import Dataset


def same(completion, answer):
    return float(completion[-1].content == answer)


def load_environment():
    rows = [{"question": f"Say {n}.", "answer": f"{n}"} for n in range(20)]
    return vf.SingleTurnEnv(dataset=Dataset.from_list(rows), rubric=vf.Rubric(funcs=[same], weights=[2.0]))
"""


@pytest.fixture(scope="module", autouse=True)
def environments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("environments")
    (folder / "guessing_env.py").write_text(GUESSING)
    (folder / "echo_env.py").write_text(ECHO)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


def splits_of(name: str, **args: Any) -> GoalSplits:
    given = "{" + ",".join(f"{key}: {json.dumps(value)}" for key, value in args.items()) + "}"
    overrides = [f"task.options.env={name}", *([f"+task.options.args={given}"] if args else [])]
    config = load_config("train", ["task=verifiers", "user=verifiers", *overrides])
    return load_splits(config.task)


def players(*texts: str, max_turns: int = 5, user: Any = None) -> Players:
    user = user or VerifiersUser(VerifiersUserConfig(), max_turns)
    return Players(ScriptedModel(says(*texts), cuts=False), user, Sampling(48), max_turns)


def played(goal: Goal, *texts: str, **options: Any) -> tuple[Conversation, float | None]:
    async def both() -> tuple[Conversation, float | None]:
        done = await play(players(*texts, **options), Conversation(goal), RngKey(1))
        return done, (await REWARD(done)).reward

    return asyncio.run(both())


def test_rows_become_goals_and_no_row_is_in_two_splits():
    splits = splits_of("echo_env")
    assert [len(goals) for goals in (splits.train, splits.val, splits.test)] == [16, 2, 2]
    goal = splits.test[1]
    assert (goal.id, goal.prompt, goal.reference) == ("row-10", "Say 10.", "10")
    assert goal.metadata["verifiers"]["row"]["example_id"] == 10
    own = splits_of("guessing_env", held_out=4)  # rows of its own for the evaluation; what they ask is not trained on
    assert [goal.id for goal in own.test] == ["eval-0", "eval-2"] and [g.id for g in own.val] == ["eval-1", "eval-3"]
    assert [goal.id for goal in own.train] == [f"train-{n}" for n in range(4, 10)]


def test_a_single_turn_environment_asks_once_and_its_rubric_is_the_reward():
    goal = splits_of("echo_env").test[1]
    for text, reward in (("10", 2.0), ("11", 0.0)):
        done, found = played(goal, text)
        assert [turn.user for turn in done.turns] == ["Say 10."] and done.ended_by == "environment"
        assert found == reward == played(goal, text, max_turns=1)[1]


def test_our_own_user_may_speak_for_a_single_turn_environment():
    goal = splits_of("echo_env").test[1]
    done, found = played(goal, "Which one?", "10", max_turns=2, user=AgendaUser(AgendaUserConfig(), 2))
    assert len(done.turns) == 2 and done.turns[0].user != "Say 10." and found == 2.0  # the last reply counts


def test_a_multi_turn_environment_answers_until_it_ends():
    goal = splits_of("guessing_env").test[0]
    done, reward = played(goal, "7", "3", "0", "1")
    assert [turn.user for turn in done.turns] == ["Guess 0.", "1 wrong: 7", "2 wrong: 7 3"]
    assert done.ended_by == "environment" and reward == pytest.approx(1.03)
    cut, less = played(goal, "7", "0", max_turns=2)  # the environment has not seen the last reply
    assert cut.ended_by == "max_turns" and less == pytest.approx(0.02)
    broken, nothing = played(goal, "break")
    assert broken.ended_by == "invalid: environment" and nothing is None


def test_the_reward_is_that_of_a_rollout_of_verifiers():
    goal = splits_of("guessing_env").test[0]
    entry = goal.metadata["verifiers"]
    env = vf.load_environment(entry["env"], **entry["args"])
    texts = ["7", "3", "0"]
    with FaultServer(say=lambda call: texts[len(call["messages"]) // 2]) as server:
        output = asyncio.run(env.run_rollout(entry["row"], client_of(server), "tiny", {}))
    assert output["error"] is None and output["reward"] == pytest.approx(played(goal, *texts)[1])


def test_two_futures_of_a_candidate_do_not_see_each_others_guesses():
    goal = splits_of("guessing_env").test[0]

    def policy(messages: Any, key: RngKey) -> str:
        replies = sum(message.role == "assistant" for message in messages)
        return "9" if not replies else "0" if key.sample == 0 else f"4{replies}"

    both = Players(ScriptedModel(policy, cuts=False), VerifiersUser(VerifiersUserConfig(), 5), Sampling(48), 5)

    async def futures() -> Any:
        context = await draw_context(both, goal, "", 2, RngKey(1))
        found = await multiturn_reward(
            context, [Reply("5"), Reply("6")], players=both, reward=REWARD, window=2, num_samples=2, key=RngKey(1)
        )
        return context, found

    context, candidates = asyncio.run(futures())
    assert context.state.state["guesses"] == ["9"]  # as at the branching point
    for candidate, text in zip(candidates, "56", strict=True):
        right, wrong = candidate.futures
        assert right.state.state["guesses"] == ["9", text, "0"] and right.ended_by == "environment"
        assert [turn.user for turn in wrong.turns[2:]] == [f"2 wrong: 9 {text}", f"3 wrong: 9 {text} 42"]
        assert [score.reward for score in candidate.scores] == pytest.approx([1.03, 0.04])


def test_a_context_without_its_state_is_played_again():
    goal = splits_of("guessing_env").test[0]
    chat = Conversation(goal).with_user("Guess 0.").with_reply(Reply("7")).with_user("1 wrong: 7")
    user = VerifiersUser(VerifiersUserConfig(), 5)
    turn = asyncio.run(user.respond(chat.with_reply(Reply("3")), RngKey(1)))
    assert turn.text == "2 wrong: 7 3"
    other = Conversation(goal).with_user("Guess 0.").with_reply(Reply("7")).with_user("Something else.")
    assert asyncio.run(user.respond(other.with_reply(Reply("3")), RngKey(1))).end == "invalid: environment"


def test_a_system_message_stands_before_the_first_one_unless_the_policy_has_it():
    goal = splits_of("guessing_env", system_prompt="Be brief.").test[0]
    user = VerifiersUser(VerifiersUserConfig(), 5)
    said = [asyncio.run(user.respond(Conversation(goal, prompt), RngKey(1))).text for prompt in ("", "Be brief.")]
    assert said == ["Be brief.\n\nGuess 0.", "Guess 0."] and goal.prompt == "Guess 0."


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": ""}, "task.options.env is not set"),
        ({"name": "nowhere_env"}, "cannot be loaded: Could not import 'nowhere_env'"),
        ({"name": "guessing_env", "shape": 3}, "unexpected keyword argument 'shape'"),
        slow({"name": "guessing_env", "tools": True}, r"has tools \(found\)"),  # its import takes long
        ({"name": "guessing_env", "size": 1}, "has 1 rows, and none is left for the val split"),
    ],
)
def test_an_environment_that_cannot_be_played_is_refused(options, said):
    with pytest.raises(BadInput, match=said):
        splits_of(**options)


def test_its_user_speaks_for_no_other_task():
    config = load_config("evaluate", ["task=doc_edit", "user=verifiers"])
    with pytest.raises(BadInput, match=r"user \(.*VerifiersUser\) needs verifiers in a goal's metadata"):
        check_players(config, load_splits(config.task), policy_here=False)


# --- our task as an environment --------------------------------------------------------------------------------------


def client_of(server: FaultServer) -> Any:
    from verifiers.types import ClientConfig

    return ClientConfig(api_key_var="HOME", api_base_url=server.url)  # any variable that is set


def test_a_task_of_ours_is_an_environment():
    few = ["task.num_train=2", "task.num_val=1"]
    env = vf.load_environment("collab", task="doc_edit", overrides=few)
    assert isinstance(env, vf.MultiTurnEnv) and (len(env.get_dataset()), len(env.get_eval_dataset())) == (2, 1)
    config = load_config("evaluate", ["task=doc_edit", *few])

    def say(call: dict[str, Any]) -> str:
        messages = [Message(message["role"], message["content"]) for message in call["messages"]]
        return good_collaborator(messages, RngKey(1))

    with FaultServer(say=say) as server:
        outputs = env.generate_sync(
            [row for row in env.get_dataset() for _ in range(2)], client=client_of(server), model="tiny",
            sampling_args={},
        )["outputs"]  # fmt: skip
    goal = load_splits(config.task).train[0]
    for output in outputs:
        assert output["error"] is None and output["metrics"]["num_turns"] >= 3
        assert output["reward"] > 2 and output["metrics"]["interactivity"] > 0
        parts = {name: output["metrics"][name] for name in config.task.metrics}
        weighted = sum(config.task.metrics[name].weight * value for name, value in parts.items())
        assert output["reward"] == pytest.approx(weighted) == pytest.approx(output["metrics"]["reward"])
    said = [[message["content"] for message in call["messages"]] for call in server.calls]  # rollouts in any order
    assert {first for first, *_ in said} == {config.task.system_prompt}
    assert any(str(goal.metadata["title"]) in asked for _, asked, *_ in said)
    assert {len(output["prompt"]) for output in outputs} == {2}  # system and the user's first message


def test_the_split_of_an_exported_evaluation_is_checked():
    with pytest.raises(RuntimeError, match="eval_split .'train'. must be val or test"):
        vf.load_environment("collab", eval_split="train")


def test_an_interrupt_is_not_taken_over():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    splits_of("guessing_env", size=12)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
