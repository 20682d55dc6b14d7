"""`from collab import multiturn_reward, score_conversation`: the reward of a plain chat."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from composing import load_config
from fault_server import FaultServer
from scripted import ScriptedModel, says

import collab
from collab import multiturn_reward, score_conversation
from collab.app import build
from collab.conversation import Goal
from collab.util.errors import BadInput

GOAL = {
    "single_turn_prompt": "A friendly sign for the bench by the pond.",
    "single_turn_completion": "Sit down and rest a while. The ducks eat oats and no bread. Take your litter home.",
    "single_turn_metadata": {"title": "the bench by the pond", "form": "sign", "preferences": {"tone": "friendly"}},
}
HI = [{"role": "user", "content": "Hi, I need a sign for the bench by the pond."}]
ASK, WRITE = "What should the sign say to visitors?", "Sit down and rest a while. Take your litter home."
CHAT = [*HI, {"role": "assistant", "content": ASK}, {"role": "user", "content": "Sit down and rest a while."}]
POLICY = ("What tone do you want?", WRITE)


@pytest.fixture(autouse=True)
def composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collab.app.library.load_config", load_config)


def policy() -> ScriptedModel:
    return ScriptedModel(says(*POLICY), cuts=False)


def reward(candidates: list[str], messages: Any = HI, **options: Any) -> Any:
    return multiturn_reward(messages, candidates, GOAL, **{"policy": policy(), **options})


def test_mr_is_the_mean_of_the_futures_and_has_a_spread() -> None:
    player = ScriptedModel(lambda messages, key: WRITE if key.sample == 1 else POLICY[0], cuts=False)
    asked, wrote = multiturn_reward(HI, [ASK, WRITE], GOAL, policy=player, window=2, num_samples=3)
    assert [asked.reply.text, wrote.reply.text] == [ASK, WRITE]
    for candidate in (asked, wrote):
        rewards = [score.reward for score in candidate.scores]
        assert len(candidate.futures) == 3 and candidate.mr == pytest.approx(fmean(rewards))
        assert candidate.spread == pytest.approx(stdev(rewards))
        for future in candidate.futures:
            assert future.messages()[0].content == HI[0]["content"] and len(future.turns) <= 3
    assert asked.spread > 0, "one sample goes another way"


def test_all_candidates_face_the_same_user_and_a_seed_gives_the_same_again() -> None:
    first, same = reward([ASK, ASK])
    assert first.futures == same.futures
    assert reward([ASK])[0].futures == first.futures
    others = [reward([ASK], seed=seed)[0].futures for seed in range(2, 6)]
    assert any(futures != first.futures for futures in others)


def test_without_a_window_it_is_the_score_of_the_chat() -> None:
    (candidate,) = reward([WRITE], CHAT, window=0)
    done = [*CHAT, {"role": "assistant", "content": WRITE}]
    # Like the last turn of a run, the reply is the end of the conversation.
    (at_the_end,) = reward([WRITE], CHAT, window=0, overrides=["task.max_turns=2"])
    score = score_conversation(done, GOAL, policy=policy())
    assert at_the_end.futures[0].ended_by == "max_turns" and score.reward == at_the_end.mr
    assert (
        score.parts == at_the_end.scores[0].parts and {"bleu", "interactivity", "token_penalty"} <= score.parts.keys()
    )
    assert len(candidate.futures) == 1 and candidate.spread is None and candidate.mr is not None


def test_hand_made_replies_cost_what_they_say() -> None:
    chat = [*HI, {"role": "assistant", "content": WRITE}]
    guessed = score_conversation(chat, GOAL, policy=policy()).parts["token_penalty"]
    assert guessed == pytest.approx(5e-4 * -(-len(WRITE) // 4))
    counted = score_conversation(chat, GOAL).parts["token_penalty"]
    assert counted == pytest.approx(5e-4 * 14)  # 13, and the end of the turn


def test_a_long_chat_goes_on_for_the_whole_window() -> None:
    long = [message for _ in range(6) for message in CHAT[:2]] + HI
    (candidate,) = reward([ASK], long, overrides=["user.patience=9"])
    assert all(len(future.turns) == 9 for future in candidate.futures if future.ended_by in ("window", "max_turns"))
    assert max(len(future.turns) for future in candidate.futures) > 7


def test_in_a_notebook_a_loop_runs_already() -> None:
    async def cell() -> Any:
        return reward([ASK, WRITE])

    assert [one.mr for one in asyncio.run(cell())] == [one.mr for one in reward([ASK, WRITE])]


def test_the_system_message_instructs_the_policy() -> None:
    player = policy()
    reward([ASK], [{"role": "system", "content": "Ask first."}, *HI], policy=player)
    assert all(messages[0].content == "Ask first." for messages, _, _ in player.asked)
    bare = policy()
    reward([ASK], policy=bare)
    assert all(messages[0].role == "user" for messages, _, _ in bare.asked)


def test_a_goal_may_be_an_object_and_the_task_another() -> None:
    goal = Goal("sum", "What is 2 + 3?", "5")
    chat = [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "The answer is 5."}]
    assert score_conversation(chat, goal, task="math", policy=policy()).parts["accuracy"] == 1.0


def test_a_loaded_model_plays_and_its_folder_does_too(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    from collab.config.schema import ModelConfig
    from collab.lm.loading import load_tokenizer

    lm = AutoModelForCausalLM.from_pretrained(tiny_model)
    pair = (lm, load_tokenizer(ModelConfig(path=str(tiny_model))))
    short = {"num_samples": 2, "window": 1, "overrides": ["task.max_new_tokens=8", "precision=fp32"]}
    loaded = reward([ASK], policy=pair, **short)[0]
    assert all(future.turns[-1].reply.token_ids for future in loaded.futures)
    assert reward([ASK], policy=str(tiny_model), **short)[0].futures == loaded.futures


def test_a_server_plays_policy_user_and_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # replies are kept in outputs/

    def say(call: dict[str, Any]) -> str:
        system = call["messages"][0]["content"]
        if call["model"] == "rater":
            return json.dumps({"reasons": "so", f"score_{system.split('mark ')[1][:8]}": 0.5})
        return '{"current_answer": "none", "thought": "hm", "message": "Oats, please."}' if "play" in system else WRITE

    with FaultServer(say=say, models=("speaker", "rater")) as server:
        (found,) = multiturn_reward(
            HI,
            [ASK],
            GOAL,
            policy=f"speaker@{server.url}",
            user=f"speaker@{server.url}",
            judge=f"rater@{server.url}",
            window=1,
            num_samples=1,
        )
    assert found.part("interactivity") == 0.5
    assert found.futures[0].turns[1].user == "Oats, please." and found.futures[0].assistant_texts == [ASK, WRITE]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"messages": CHAT[:2]}, "must end with a message by 'user'"),
        ({"messages": [*HI, *HI]}, "message 2 of the chat is by 'user' and must be by 'assistant'"),
        ({"messages": [{"role": "user"}]}, "message 1 of the chat: field content is missing"),
        ({"messages": []}, "must end with a message by 'user'"),
        ({"candidates": "one text"}, "must be a list of texts"),
        ({"candidates": []}, "must be a list of texts"),
        ({"goal": {"single_turn_prompt": "A sign."}}, "The goal: field single_turn_completion is missing"),
        ({"goal": "A sign."}, "The goal is text"),
        ({"task": "poems"}, "task has no option poems. There are: abg_coqa"),
        ({"definitions": "mine"}, "definitions has no option mine. There are: collab, official"),
        ({"user": "agneda"}, "user='agneda' is none of agenda"),
        ({"judge": "strict"}, "judge='strict' is none of"),
        ({"user": None}, "user is None; it must be an option of the group user"),
        ({"judge": None}, "judge is None; it must be an option of the group judge"),
        ({"policy": 3}, "policy is a int; it must be a path"),
        ({"policy": "openai"}, "OPENAI_API_KEY"),
        ({"policy": "nowhere/at/all"}, "model.path=nowhere/at/all is not there"),
        ({"window": -1}, "sampler.window"),
        ({"num_samples": 0}, "sampler.num_samples"),
        ({"overrides": ["task.max_tokens=3"]}, "There is no field task.max_tokens"),
        ({"overrides": ["dry_run=true"]}, "`collab estimate` tells what"),
        ({"task": "code"}, "entry_point"),
        ({"definitions": "official"}, "judge"),
    ],
)
def test_wrong_input_is_named_before_a_model_is_loaded(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(build, "load_model", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    given: dict[str, Any] = {"messages": HI, "candidates": [ASK], "goal": GOAL, **options}
    with pytest.raises(BadInput) as caught:
        multiturn_reward(**given)
    assert message in str(caught.value)


def test_an_unfinished_chat_has_no_score() -> None:
    with pytest.raises(BadInput, match="must end with a message by 'assistant'"):
        score_conversation(CHAT, GOAL)


def test_import_collab_is_cheap_and_has_no_other_name() -> None:
    code = "import sys, collab; sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'reward'"):
        collab.reward  # noqa: B018
