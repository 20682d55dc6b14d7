"""A user model from chat logs to conversations: the run, what it refuses, and that its own adapter plays."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from composing import load_config
from huggingface_hub import ModelCard

from collab.app.build import chat_logs, chat_model
from collab.app.cli import main
from collab.app.preflight import check_machine
from collab.chat.base import ChatModel, Sampling
from collab.config.checks import check
from collab.conversation import Message
from collab.datamodules.goals import load_splits
from collab.lm.chat_format import ChatFormat
from collab.lm.loading import load_tokenizer
from collab.parsing.intents import END
from collab.randomness import RngKey
from collab.util.errors import BadInput

CHAT = [
    {"role": "user", "content": "zz zz zz zz"},
    {"role": "assistant", "content": "About what?"},
    {"role": "user", "content": "zz zz"},
    {"role": "assistant", "content": "Here."},
]


def logs(folder: Path) -> Path:
    path = folder / "logs.jsonl"
    rows = ({"messages": CHAT, "intent": f"You are a user who wants {n} poems."} for n in range(12))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def overrides(folder: Path, model: Path, *more: str) -> list[str]:
    return [
        "experiment=user_sft",
        f"model.path={model}",
        f"algorithm.data={logs(folder)}",
        "algorithm.scrub=false",
        "algorithm.lr=0.02",
        "trainer.goals_per_step=4",
        "trainer.max_steps=8",
        "trainer.val_every=4",
        "precision=fp32",
        "logger.wandb=disabled",
        f"output_dir={folder / 'run'}",
        *more,
    ]


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py", *overrides(folder, tiny_model)])
        main("train")
    return folder / "run"


def test_the_perplexity_of_held_out_messages_falls(trained: Path) -> None:
    found = json.loads((trained / "results.json").read_text())["perplexity"]
    assert 1 < found["after"] < 0.6 * found["before"]
    rows = (trained / "csv" / "metrics.csv").read_text().splitlines()
    assert "val/perplexity" in rows[0] and not (trained / "transcripts.jsonl").exists()


def test_its_card_tells_the_perplexity(trained: Path) -> None:
    found = json.loads((trained / "results.json").read_text())["perplexity"]
    card = ModelCard.load(trained / "policy" / "README.md")
    assert card.data.eval_results is not None
    (figure,) = card.data.eval_results
    assert figure.metric_type == "perplexity" and figure.metric_value == pytest.approx(found["after"], abs=1e-4)
    assert f"{found['before']:.3f} before" in card.text and "It is no assistant." in card.text
    assert "Personal data were not taken out" in card.text  # algorithm.scrub=false


def test_what_is_exported_plays_and_not_its_base(trained: Path) -> None:
    config = load_config("evaluate", ["user=userlm", f"user.endpoint.model={trained / 'policy'}", "precision=fp32"])
    format = ChatFormat(load_tokenizer(load_config("evaluate", [f"model.path={trained / 'policy'}"]).model))
    assert format.speaker == "user"
    nobody: Any = None
    model = chat_model(config, config.user.endpoint, nobody)  # type: ignore[attr-defined]
    asked = [Message("system", "You are a user who wants 3 poems.")]

    async def said(speaker: ChatModel, adapter: bool) -> str:
        return (await speaker.complete(asked, Sampling(4, temperature=0, adapter=adapter), RngKey(1))).text

    # Users and judges of other kinds sample without the adapter, which stands for the policy's.
    assert [asyncio.run(said(model, adapter))[:2] for adapter in (True, False)] == ["zz", "zz"]
    assert not asyncio.run(said(model.engine, False)).startswith("zz")  # type: ignore[attr-defined]


def test_who_speaks_is_checked_before_a_model_is_loaded(trained: Path, tiny_model: Path) -> None:
    user, assistant = trained / "policy", tiny_model
    for given, told in (
        (["user=userlm", f"user.endpoint.model={assistant}"], r"user.endpoint.model=.*needs a user model"),
        (["user=userlm", "user.endpoint.model=null"], r"user.endpoint.model=None: user=userlm needs a user model"),
        ([f"policies=[base,mine:{user}]"], "policies: mine is a user model"),
        (["user=local", f"user.endpoint.model={user}"], r"user.endpoint.model=.*is a user model"),
    ):
        config = load_config("evaluate", [f"model.path={assistant}", "task.num_test=1", *given])
        with pytest.raises(BadInput, match=told):
            check_machine(config, load_splits(config.task), "evaluate")


def test_logs_become_batches_of_whole_conversations(tmp_path: Path, tiny_model: Path) -> None:
    data, notes = chat_logs(load_config("train", overrides(tmp_path, tiny_model)))
    assert notes == ["10 conversations are learned from, 2 are held out"]
    (batch,) = data.val_dataloader()
    assert [g.candidates[0].reply.text for g in batch.groups] == [CHAT[0]["content"], CHAT[2]["content"], END] * 2
    assert all(len(batch.groups) == 12 for batch in data.train_dataloader())
    texts = [
        load_tokenizer(load_config("train", overrides(tmp_path, tiny_model)).model).decode(
            g.candidates[0].reply.prompt_ids
        )
        for g in batch.groups
    ]
    assert texts[1].endswith("<|im_start|>user\nAbout what?<|im_end|>\n<|im_start|>assistant\n")


def test_rules_of_the_config(tmp_path: Path, tiny_model: Path) -> None:
    for more, told in (
        ("trainer.val_every=0", "trainer.val_every=0 measures nothing"),
        ("algorithm.minimum_metric=mr", "algorithm.minimum_metric reads the scores"),
        ("algorithm.data=null", "algorithm.data is null"),
    ):
        with pytest.raises(BadInput, match=told):
            check(load_config("train", overrides(tmp_path, tiny_model, more)))
    with pytest.raises(BadInput, match="algorithm.speaker"):
        check(load_config("train", overrides(tmp_path, tiny_model, "algorithm.speaker=judge")))


def test_bad_logs_are_refused_before_anything_is_made(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    given = overrides(tmp_path, tiny_model)
    (tmp_path / "logs.jsonl").write_text('{"question": "?"}\n')
    monkeypatch.setattr("sys.argv", ["train.py", *given])
    with pytest.raises(SystemExit):
        main("train", lambda config: pytest.fail("it ran"))
    assert "line 1: field messages is missing" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
