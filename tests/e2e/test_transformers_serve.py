"""A real OpenAI-compatible server, `transformers serve`, as user, policy and judge of one rollout."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from commands import start
from scripted import ModelUser

from collab.chat.base import Sampling
from collab.chat.http import HttpChatModel
from collab.chat.probe import served_model
from collab.config.schema import EndpointConfig, LLMUserConfig
from collab.conversation import Conversation, Goal, Score
from collab.randomness import RngKey
from collab.rewards.judge import Interactivity, Judge
from collab.rewards.reward import ConversationReward
from collab.simulation.conversation_loop import Players, play_goals
from collab.simulation.llm import LLMUser

pytestmark = pytest.mark.timeout(600)
SERVE = """
from huggingface_hub import constants
from transformers.cli.transformers import app

constants.HF_HUB_CACHE = {cache!r}  # it lists the models that are there
app()
"""


@pytest.fixture(scope="module")
def endpoint(letters_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointConfig]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("serve")
    script, log = folder / "serve.py", folder / "log"
    script.write_text(SERVE.format(cache=str(folder / "cache")))
    where = ("--device", "cpu", "--host", "127.0.0.1", "--port", str(port))
    server = start(str(script), ["serve", str(letters_model), *where], log)
    try:
        until = time.monotonic() + 300
        while time.monotonic() < until and server.is_alive():
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        assert server.is_alive(), log.read_text()
        yield EndpointConfig(base_url=f"http://127.0.0.1:{port}/v1", model=str(letters_model), max_concurrency=2)
    finally:
        server.terminate()
        server.join(30)
        server.kill()
        server.join()


def test_a_served_model_plays_user_and_policy_and_judges(endpoint: EndpointConfig) -> None:
    assert served_model(endpoint) == endpoint.model
    model = HttpChatModel(endpoint)
    players = Players(model, ModelUser(model), Sampling(12, temperature=0.7), max_turns=2)
    metric, problems = Interactivity(), Counter[str]()
    metric.judge = Judge(model, Sampling(24, temperature=0.0), 1, 1, problems)
    goals = [Goal("ferry", "A note about the ferry.", ""), Goal("kiln", "A note about the kiln.", "")]

    async def played_and_judged() -> list[tuple[Conversation, Score]]:
        played = await play_goals(players, goals, "Be brief.", RngKey(1, split="test"))
        reward = ConversationReward({"interactivity": (1.0, metric)})
        return list(zip(played, await asyncio.gather(*map(reward, played)), strict=True))

    found = asyncio.run(played_and_judged())
    assert [len(talk.turns) for talk, _ in found] == [2, 2]
    for turn in (turn for talk, _ in found for turn in talk.turns):
        assert turn.user and turn.reply.text and 1 <= turn.reply.num_tokens <= 12
        assert turn.reply.usage is not None and turn.reply.usage.prompt_tokens > 10
    verdicts = [reply for _, score in found for reply in score.raw["interactivity"]]
    assert all(verdicts) and 2 <= len(verdicts) <= 4  # a model of this size may well give no score, twice
    assert problems["judge_missing"] == [score.reward for _, score in found].count(None)
    spent = model.ledger.spent
    assert (spent["user"].calls, spent["policy"].calls, spent["judge"].calls) == (4, 4, len(verdicts))
    user = LLMUser(LLMUserConfig(retries=1, max_new_tokens=24), 2, model)  # whose form it may well not keep to
    turn = asyncio.run(user.respond(Conversation(goals[0]), RngKey(1, role="user")))
    assert turn.text or turn.end.startswith("invalid") and user.problems["user_invalid"] == 1
    assert 5 <= spent["user"].calls <= 6
    assert not any(spend.failed for spend in spent.values())
