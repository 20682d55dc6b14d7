"""Callbacks in tiny Lightning runs, and the terminal chat over a tiny random Llama."""

from __future__ import annotations

import csv
import errno
import io
import json
import pickle
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from models import tiny_lm, word_tokenizer
from rich.console import Console
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from collab.app import chat as terminal
from collab.callbacks.checkpoint import BatchCheckpoint, StepSeed, last_checkpoint
from collab.callbacks.export import ExportBest
from collab.callbacks.metrics_file import metrics_logger
from collab.callbacks.progress import Progress, RolloutProgress
from collab.callbacks.transcripts import TranscriptCallback, TranscriptWriter
from collab.callbacks.watch import CollapseWatch
from collab.conversation import Candidate, Conversation, Goal, Group, Reply, Score
from collab.lm.token_lengths import token_lengths
from collab.modules.base import Example
from collab.util.errors import BadInput

WORDS = ["user", "assistant", "system", "hi", "there", "be", "brief", *"abcdefghij"]
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}assistant "


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(WORDS, TEMPLATE)


def speaker() -> Any:
    """Sharp enough that greedy replies depend on what was said before."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": None, "max_position_embeddings": 64, "initializer_range": 1.0}
    return tiny_lm(len(WORDS) + 3, eos_token_id=2, **sizes)


def talk(goal: str, *lengths: int, ended_by: str = "window") -> Conversation:
    """A conversation whose replies have so many tokens."""
    conversation = Conversation(Goal(goal, "prompt", "reference"))
    for j, length in enumerate(lengths):
        reply = Reply(f"reply {j}", token_ids=tuple(range(length)), finish_reason="length" if length > 9 else "stop")
        conversation = conversation.with_user(f"user {j}").with_reply(reply)
    return conversation.with_end(ended_by)


def group(goal: str) -> Group:
    """Context with one turn of 5 tokens; candidates of 3 and 4 tokens; the second's two futures add 7 and 10."""
    first = Candidate(Reply("a", token_ids=(0,) * 3), (talk(goal, 5, 3),), (Score(0.25, {"bleu": 0.5}),), 0.25)
    futures = (talk(goal, 5, 4, 7), talk(goal, 5, 4, 10))
    scores = (Score(0.75, {"bleu": 1.0, "tone": None}), Score(None, {"bleu": None}))
    second = Candidate(Reply("b", token_ids=(0,) * 4), futures, scores, 0.75)
    return Group(talk(goal, 5).with_user("user 1"), (first, second))


class Played(L.Callback):
    """Stands for the rollout: ready groups and scored conversations, `val/reward` and `train/mr` from lists."""

    def __init__(self, val_rewards: list[float] | None = None, mrs: dict[int, float] | None = None) -> None:
        self.val_rewards, self.mrs = list(val_rewards or []), mrs or {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        batch.groups = [group("g1"), group("g2")]
        mr = self.mrs.get(batch_idx, 0.5)
        metrics = {"train/mr": mr, "train/mr_spread": 0.1, "train/rollout_tokens_per_s": 812.4}
        pl_module.log_dict(metrics, on_step=True, batch_size=1)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        batch.scored = [(talk("v1", 2, 2), Score(0.1, {"bleu": 0.2})), (talk("v2", 2), Score(None, {"bleu": None}))]
        if self.val_rewards:
            pl_module.log("val/reward", self.val_rewards.pop(0), on_epoch=True, batch_size=1)


class Tiny(L.LightningModule):
    """Counts its batches into the embedding; every second batch makes no optimizer step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy = torch.nn.Module()
        self.policy.lm = speaker()
        self.tokenizer = tiny_tokenizer()
        self.seen: list[int] = []

    def examples(self, groups):
        """The second candidate of each group is trained on."""
        return [Example((group.candidates[1].reply,)) for group in groups]

    def advantages(self, group):
        return [-1.0, 1.0] if group.context.goal.id == "g1" else None

    def training_step(self, batch, batch_idx) -> None:
        self.seen.append(batch_idx)
        with torch.no_grad():
            self.policy.lm.model.embed_tokens.weight.fill_(batch_idx + 1)
        self.log("train/loss", 1.5, on_step=True, batch_size=1)
        if batch_idx % 2:
            self.optimizers().step()

    def validation_step(self, batch, batch_idx) -> None:
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def loader(batches: int) -> DataLoader:
    return DataLoader(range(batches), batch_size=1, collate_fn=lambda items: SimpleNamespace(items=items))


def fit(callbacks, batches=6, val_every=None, logger=False, ckpt_path=None, root=None) -> tuple[L.Trainer, Tiny]:
    module = Tiny()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        callbacks=callbacks,
        logger=logger,
        log_every_n_steps=1,
        val_check_interval=val_every,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, BatchCheckpoint) for callback in callbacks),
        default_root_dir=root,
    )
    trainer.fit(module, loader(batches), loader(1) if val_every else None, ckpt_path=ckpt_path, weights_only=True)
    return trainer, module


def embedded(folder: Path) -> float:
    """Number of batches that the policy in `folder` had seen."""
    return AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight[0, 0].item()


# --- progress --------------------------------------------------------------------------------------------------------


def test_progress_leaves_plain_lines_where_there_is_no_terminal():
    out = io.StringIO()
    with Progress(console=Console(file=out, width=40)) as progress:
        progress.phase("base", 3)
        for _ in range(3):
            progress.advance()
        progress.done(mr=torch.tensor(0.25), bleu=None)
        progress.steps(24)
        progress.phase("rollout", 8)
        progress.advance(8, mr=0.4)
        progress.step(3, 17.4, MR=0.4123, KL=None, pertinent=float("nan"), tokens=181.4)
    lines = ["base  3 conversations  mr 0.250  0 s", "step 3/24  MR 0.412  tokens 181  17 s  about 7 min left", ""]
    assert out.getvalue().split("\n") == lines


@pytest.mark.parametrize("width", [80, 200])
def test_progress_animates_both_bars_on_a_terminal(width):
    out = io.StringIO()
    with Progress(console=Console(file=out, width=width, force_terminal=True)) as progress:
        progress.steps(24, completed=2)
        progress.phase("rollout", 8, "MR")
        for _ in range(3):
            progress.began()
        progress.replied(70)
        progress.scored(0.4)
        progress.scored(None)
        progress.ended()
        progress.advance(5, spent="$1.20" if width == 200 else None)
        progress.step(3, 17.4, **dict.fromkeys("abcdefghijklmnop", 0.25))
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "step 3/24  a 0.250  b 0.250" in drawn  # the line of the step, whole
    step, rollout = drawn.replace("\r", "\n").rstrip().split("\n")[-2:]  # the bars as they stood at the end
    assert "step" in step and "━" in step and "3/24" in step and "about 6 min left" in step
    assert "rollout" in rollout and "━" in rollout and "5/8" in rollout
    assert "2 under way  MR 0.400  70 tokens/s" in rollout
    assert ("$1.20" in rollout) == (width == 200)


def test_progress_is_silent_on_other_ranks(capsys):
    with Progress(rank=1) as progress:
        progress.steps(2)
        progress.phase("rollout", 8)
        progress.step(1, 1.0, mr=0.4)
        progress.done()
    assert capsys.readouterr().out == ""


def test_rollout_progress_reports_each_step_and_validation():
    out = io.StringIO()
    progress = Progress(console=Console(file=out, width=40))
    callback = RolloutProgress(progress, conversations_per_step=8, conversations_per_validation=4)
    with progress:
        fit([callback, Played([0.75])], batches=2, val_every=2)
    lines = out.getvalue().splitlines()
    for number, line in enumerate(lines[:2], 1):
        assert line.startswith(f"step {number}/2  MR 0.500  ")
    assert lines[2].startswith("validation  4 conversations  R* 0.750")


# --- transcripts -----------------------------------------------------------------------------------------------------


def test_transcript_writer_appends_and_names_the_rank(tmp_path):
    for policy in ("base", "proactive"):
        TranscriptWriter(tmp_path / "run").write(
            [(talk("ä", 1), Score(None, {"bleu": None}))], phase="test", policy=policy
        )
    TranscriptWriter(tmp_path / "run", rank=1).write([(talk("g", 12), Score(0.5, {"bleu": 1.0}))], phase="train")
    lines = (tmp_path / "run/transcripts.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 and "ä" in lines[0]
    assert json.loads(lines[0]) == {
        "phase": "test",
        "policy": "base",
        "goal": "ä",
        "messages": [{"role": "user", "content": "user 0"}, {"role": "assistant", "content": "reply 0"}],
        "finish_reasons": ["stop"],
        "reply_tokens": [1],
        "ended_by": "window",
        "reward": None,
        "parts": {"bleu": None},
    }
    other = json.loads((tmp_path / "run/transcripts-rank1.jsonl").read_text())
    assert (other["reward"], other["parts"], other["reply_tokens"]) == (0.5, {"bleu": 1.0}, [12])
    goals = [(tmp_path / f"run/goals{rank}.jsonl").read_text(encoding="utf-8").splitlines() for rank in ("", "-rank1")]
    assert [json.loads(line) for line in goals[0]] == [
        {"phase": "test", "id": "ä", "prompt": "prompt", "reference": "reference", "metadata": {}}
    ]
    assert [json.loads(line)["id"] for line in goals[1]] == ["g"]


def test_a_transcript_has_the_log_probability_of_each_sampled_token(tmp_path):
    tokenizer = tiny_tokenizer()
    conversation = Conversation(Goal("g", "prompt", "reference"))
    for text, logprobs in (("hi there", (-0.5, -1.25, -0.126)), ("a b", (-2.0, -3.0, -4.0)), ("c", ())):
        ids = tuple(tokenizer.encode(f"{text} </s>"))
        conversation = conversation.with_user("user").with_reply(Reply(text, ids, logprobs))
    writer = TranscriptWriter(tmp_path, tokenizer=tokenizer)
    writer.write([(conversation, Score(0.5, {}))], phase="test")
    writer.write([(conversation, Score(0.5, {}))], phase="train", sampled_from=2)
    writer.write([(conversation, Score(0.5, {}))], phase="train", sample=1, sampled_from=3)
    whole, later, none = [json.loads(line) for line in writer.path.read_text().splitlines()]
    assert whole["logprobs"] == [[-0.5, -1.25, -0.13], [-2.0, -3.0, -4.0], []]
    assert whole["token_lengths"] == [[2, 6, 0], [1, 2, 0], []]
    assert (later["logprobs"][0], later["logprobs"][1:]) == ([], whole["logprobs"][1:])
    assert "logprobs" not in none


@pytest.fixture(scope="module")
def tokenizer_of_smollm2(smollm2):
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("So héllo 👋 there", None),  # the emoji takes several tokens
        ("", [0]),
    ],
)
def test_token_lengths_add_up_to_the_text(tokenizer_of_smollm2, text, pieces):
    ids = tuple(tokenizer_of_smollm2.encode(text)) + (tokenizer_of_smollm2.eos_token_id,)
    lengths = token_lengths(tokenizer_of_smollm2, Reply(text, ids))
    assert sum(lengths) == len(text) and len(lengths) == len(ids) and lengths[-1] == 0
    assert pieces is None or lengths == pieces
    if text:
        place, words = 0, []
        for length in lengths:
            words.append(text[place : (place := place + length)])
        assert words[0] == "So" and " there" in words and any(length == 0 for length in lengths[:-1])


def test_token_lengths_leave_out_a_thought_and_white_space(tokenizer_of_smollm2):
    ids = tuple(tokenizer_of_smollm2.encode("I think so. Yes, please \n"))
    lengths = token_lengths(tokenizer_of_smollm2, Reply("Yes, please", ids))
    assert sum(lengths) == len("Yes, please") and lengths[0] == lengths[-1] == 0
    assert token_lengths(tokenizer_of_smollm2, Reply("another text", ids)) == []
    assert token_lengths(tokenizer_of_smollm2, Reply("over HTTP")) == []


def test_a_run_that_goes_on_doubles_no_line_and_cuts_off_a_torn_one(tmp_path):
    def write(rank, step, *goals):
        scored = [(talk(goal, 1), Score(0.5, {})) for goal in goals]
        TranscriptWriter(tmp_path, rank).write(scored, phase="train", step=step, candidate=0, sample=0)

    write(0, 1, "g", "g")
    write(1, 1, "h")
    with (tmp_path / "transcripts.jsonl").open("ab") as file:
        file.write('{"phase": "train", "goal": "ä'.encode()[:-1])  # killed within a character
    before = (tmp_path / "transcripts-rank1.jsonl").read_bytes()
    write(0, 1, "g", "h", "g", "g")  # played again, now by one process, with one conversation that was lost
    write(0, 2, "g")
    lines = [json.loads(line) for line in (tmp_path / "transcripts.jsonl").read_text().splitlines()]
    assert [(line["step"], line["goal"]) for line in lines] == [(1, "g"), (1, "g"), (1, "g"), (2, "g")]
    assert (tmp_path / "transcripts-rank1.jsonl").read_bytes() == before


def test_transcripts_hold_every_future_and_validation_and_wandb_gets_tables(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    writer = TranscriptWriter(tmp_path)
    callback = TranscriptCallback(writer)
    try:
        fit([Played([0.5]), callback], batches=2, val_every=2, logger=logger)
    finally:
        logger.experiment.finish()
    records = [json.loads(line) for line in writer.path.read_text().splitlines()]
    train = [record for record in records if record["phase"] == "train"]
    assert [(r["step"], r["group"], r["candidate"], r["sample"]) for r in train] == [
        (step, g, c, s) for step in (1, 2) for g in (0, 1) for c, s in ((0, 0), (1, 0), (1, 1))
    ]
    assert [r["reward"] for r in train[:3]] == [0.25, 0.75, None]
    # The context is one turn; the second candidate is trained on; "g2" teaches nothing by its advantages.
    assert {r["turn"] for r in train} == {2}
    assert [(r["trained"], r.get("advantage")) for r in train[:6]] == [
        *((False, -1.0), (True, 1.0), (True, 1.0)),
        *((False, None), (True, None), (True, None)),
    ]
    assert [json.loads(line)["id"] for line in (tmp_path / "goals.jsonl").read_text().splitlines()] == [
        *("g1", "g2", "v1", "v2")
    ]
    validation = records[len(train) :]
    assert [(r["phase"], r["step"], r["goal"]) for r in validation] == [
        ("validation", 2, "v1"),
        ("validation", 2, "v2"),
    ]

    tables = [json.loads(path.read_text())["data"] for path in tmp_path.rglob("*.table.json")]
    assert sorted([row[:3] + row[4:] for row in table] for table in tables) == [
        *([[step, "best", "g1", 0.5], [step, "worst", "g2", 0.5]] for step in (1, 2)),
        [[2, "best", "v1", 0.1, 0.2], [2, "best", "v2", None, None]],
    ]


# --- checkpoints and export ------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_checkpoints_go_by_batches_and_training_continues_from_one(tmp_path):
    folder = tmp_path / "checkpoints"
    _, module = fit([Played(), BatchCheckpoint(folder, every_n_steps=2)], batches=5)
    assert module.seen == [0, 1, 2, 3, 4]
    assert names(folder) == ["step-000004.ckpt", "step-000005.ckpt"]  # 2 is pruned, 5 is the end, no half file is left

    resumed = BatchCheckpoint(folder, every_n_steps=1)
    trainer, module = fit([Played(), resumed], batches=6, ckpt_path=folder / "step-000004.ckpt")
    assert module.seen == [4, 5]
    assert trainer.global_step == 3  # optimizer steps of batches 1, 3 and 5
    assert names(folder) == ["step-000005.ckpt", "step-000006.ckpt"]


def test_a_run_that_stops_early_leaves_its_last_state(tmp_path):
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            trainer.should_stop = batch_idx == 2

    fit([Played(), Stop(), BatchCheckpoint(tmp_path, every_n_steps=2)], batches=8)
    assert names(tmp_path) == ["step-000002.ckpt", "step-000003.ckpt"]


def test_newest_checkpoints_stay_where_an_earlier_run_left_higher_numbers(tmp_path):
    fit([Played(), BatchCheckpoint(tmp_path, every_n_steps=3)], batches=6)
    fit([Played(), BatchCheckpoint(tmp_path, every_n_steps=1)], batches=2)
    assert names(tmp_path) == ["step-000001.ckpt", "step-000002.ckpt"]


def test_a_checkpoint_waits_for_the_validation_behind_its_batch(tmp_path):
    class Killed(L.Callback):
        def on_validation_start(self, trainer, pl_module) -> None:
            if trainer.fit_loop.batch_idx == 3:
                raise SystemExit

    with pytest.raises(SystemExit):
        fit([Played(), Killed(), BatchCheckpoint(tmp_path, every_n_steps=1)], batches=6, val_every=2)
    assert names(tmp_path) == ["step-000002.ckpt", "step-000003.ckpt"]


def test_the_last_whole_checkpoint_of_the_run_is_found_and_others_are_named(tmp_path):
    forgotten = []
    checkpoint = BatchCheckpoint(tmp_path, every_n_steps=1, run="mine", on_pruned=forgotten.append)
    fit([Played(), checkpoint], batches=4)
    assert names(tmp_path) == ["step-000003.ckpt", "step-000004.ckpt"]
    assert forgotten == [1, 2, 3]
    third, fourth = (tmp_path / name for name in names(tmp_path))
    assert last_checkpoint(tmp_path, "mine") == (fourth, [])
    assert last_checkpoint(tmp_path / "nowhere", "mine") == (None, [])
    whole = fourth.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    other = io.BytesIO()
    torch.save({"weights": torch.zeros(1)}, other)
    for content, why in (
        (whole[:-1], "is truncated"),
        (b"", "is truncated"),
        (bytes(damaged), "is damaged"),
        (pickle.dumps({"callbacks": {}}), "is truncated, or no checkpoint"),
        (other.getvalue(), "is no checkpoint of a run"),
    ):
        fourth.write_bytes(content)
        path, (refused,) = last_checkpoint(tmp_path, "mine")
        assert path == third and refused.startswith(f"step-000004.ckpt {why}"), refused
    fourth.write_bytes(whole)
    fifth = tmp_path / "step-000005.ckpt"  # of shards, of which the rest is written last
    fifth.mkdir()
    assert last_checkpoint(tmp_path, "mine") == (fourth, ["step-000005.ckpt is truncated, or no checkpoint"])
    (fifth / "rest.pt").write_bytes(whole)
    assert last_checkpoint(tmp_path, "mine")[0] == fourth  # without its shards
    (fifth / ".metadata").touch()
    (fifth / "__0_0.distcp").touch()
    assert last_checkpoint(tmp_path, "mine") == (fifth, [])
    assert last_checkpoint(tmp_path, "yours")[1][0].startswith("step-000005.ckpt is of another run")
    shutil.rmtree(fifth)
    path, refused = last_checkpoint(tmp_path, "yours")
    assert path is None and refused[1] == "step-000003.ckpt is of another run (mine, and this is yours)"


def test_a_full_disk_leaves_earlier_checkpoints_and_no_half_one(tmp_path, monkeypatch):
    save = L.Trainer.save_checkpoint

    def full(trainer, path, **options):
        save(trainer, path, **options)
        if path.stem == "step-000003":
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(L.Trainer, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        fit([Played(), BatchCheckpoint(tmp_path, every_n_steps=1, run="mine")], batches=4)
    assert names(tmp_path) == ["step-000001.ckpt", "step-000002.ckpt"]
    assert last_checkpoint(tmp_path, "mine") == (tmp_path / "step-000002.ckpt", [])


def test_whatever_draws_in_a_step_draws_the_same_when_the_run_goes_on(tmp_path):
    class Draw(L.Callback):
        def __init__(self) -> None:
            self.drawn = []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            self.drawn.append((random.random(), np.random.random(), torch.rand(1).item()))

    whole, rest = Draw(), Draw()
    fit([StepSeed(3), Played(), whole, BatchCheckpoint(tmp_path, every_n_steps=2)], batches=4)
    fit([StepSeed(3), Played(), rest], batches=4, ckpt_path=tmp_path / "step-000002.ckpt")
    assert rest.drawn == whole.drawn[2:] and len(set(whole.drawn)) == 4


def test_metrics_of_the_steps_before_stay_and_later_ones_are_logged_again(tmp_path):
    for before, values in ((0, {0: 0.5, 1: 0.25, 2: 0.125}), (2, {2: 0.75})):
        logger = metrics_logger(tmp_path, before)
        for step, value in values.items():
            logger.log_metrics({"train/loss": value}, step)
            if step == 1:
                logger.log_metrics({"val/reward": 1.0}, step)  # a new column
        with (tmp_path / "csv/metrics.csv").open("ab") as file:
            file.write(b"1,0.")  # killed while it wrote
    with (tmp_path / "csv/metrics.csv").open() as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows[:4] == [("0", "0.5", ""), ("1", "0.25", ""), ("1", "", "1.0"), ("2", "0.75", "")]


def test_the_row_of_a_step_is_on_disk_before_its_checkpoint_and_once(tmp_path):
    def killed(step: int) -> None:
        raise SystemExit

    def steps() -> list[str]:
        with (tmp_path / "csv/metrics.csv").open() as file:
            return [row["step"] for row in csv.DictReader(file) if row["train/loss"]]

    folder = tmp_path / "checkpoints"
    with pytest.raises(SystemExit):
        fit([Played(), BatchCheckpoint(folder, 2, on_pruned=killed)], logger=metrics_logger(tmp_path))
    assert names(folder)[-1] == "step-000004.ckpt" and steps() == ["0", "1", "2", "3"]
    rest = [Played(), BatchCheckpoint(folder, 1)]
    fit(rest, logger=metrics_logger(tmp_path, 4), ckpt_path=folder / "step-000004.ckpt")
    assert steps() == ["0", "1", "2", "3", "4", "5"]


def test_export_keeps_the_best_validated_policy_and_the_last(tmp_path):
    export = ExportBest(tmp_path)
    fit([Played([0.2, float("nan"), 0.5, 0.3]), export], batches=8, val_every=2)
    assert (export.best_reward, export.best_step) == (pytest.approx(0.5), 6)
    assert embedded(tmp_path / "policy") == 6
    assert embedded(tmp_path / "policy_last") == 8
    assert (tmp_path / "policy/tokenizer_config.json").is_file()


def test_a_continued_run_has_to_beat_the_best_of_the_whole_run(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    fit([Played([0.5, 0.2, 0.1]), ExportBest(tmp_path), BatchCheckpoint(checkpoints, 2)], 6, val_every=2)
    for step, played in ((4, [4, 5]), (6, [])):  # from within the run, and from its end
        export = ExportBest(tmp_path)
        mrs = [0.4]  # no validation is repeated at step 4: it had been saved with what was measured there
        _, module = fit([Played(mrs), export], 6, val_every=2, ckpt_path=checkpoints / f"step-{step:06d}.ckpt")
        assert module.seen == played
        assert (export.best_reward, export.best_step) == (pytest.approx(0.5), 2)
        assert embedded(tmp_path / "policy") == 2
        assert embedded(tmp_path / "policy_last") == 6


def test_export_takes_the_last_policy_when_nothing_was_validated(tmp_path):
    fit([Played(), ExportBest(tmp_path)], batches=3)
    assert embedded(tmp_path / "policy") == embedded(tmp_path / "policy_last") == 3


@pytest.mark.parametrize(
    ("bad", "val_every", "kept"),
    [
        ((2, 3), None, 1),  # the policy of the second rollout, after one update
        ((2,), None, 4),  # it recovered
        ((), None, 4),
        ((2, 3), 2, 2),  # validations decide
    ],
)
def test_a_policy_that_collapsed_is_not_what_a_run_leaves(tmp_path, bad, val_every, kept):
    watch = CollapseWatch(lambda text: None)
    rollouts = Played([0.5, 0.2], dict.fromkeys(bad, -1.0))
    fit([rollouts, watch, ExportBest(tmp_path, watch=watch)], batches=4, val_every=val_every)
    assert embedded(tmp_path / "policy") == kept
    assert embedded(tmp_path / "policy_last") == 4


# --- terminal chat ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A run's output folder with an exported policy."""
    folder = tmp_path_factory.mktemp("run")
    speaker().save_pretrained(folder / "policy")
    tiny_tokenizer().save_pretrained(folder / "policy")
    (folder / ".hydra").mkdir()
    (folder / ".hydra/config.yaml").write_text("task:\n  system_prompt: be brief\n")
    return folder


def chat(monkeypatch, capsys, typed: str, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    code = terminal.main(arguments)
    return code, *capsys.readouterr()


def test_chat_answers_resets_and_ends_with_the_input(run_folder, monkeypatch, capsys):
    typed = "hi there\nhi there\n\n/reset\nhi there\n"
    arguments = f"policy={run_folder / 'policy'}", "temperature=0", "max_new_tokens=8"
    code, out, _ = chat(monkeypatch, capsys, typed, *arguments)
    assert code == 0
    assert "system> be brief" in out
    replies = [line.split("assistant> ")[1] for line in out.splitlines() if "assistant> " in line]
    assert len(replies) == 3
    assert replies[0] == replies[2] != replies[1]  # the second one had heard more
    _, out, _ = chat(monkeypatch, capsys, "/quit\nhi there\n", *arguments, "system_prompt=")
    assert "system>" not in out and "assistant>" not in out
    _, out, _ = chat(monkeypatch, capsys, "/help\n/quit\n", *arguments)
    assert "There is no /help. /reset begins anew, /quit leaves." in out and "assistant>" not in out


def test_chat_that_outgrows_the_model_says_so_and_goes_on(run_folder, monkeypatch, capsys):
    typed = "hi " * 60 + "\nhi\n"
    code, out, _ = chat(monkeypatch, capsys, typed, f"policy={run_folder / 'policy'}", "max_new_tokens=4")
    assert code == 0
    assert "/reset" in out.split("you> ")[1]
    assert "assistant> " in out.split("you> ")[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "policy=base"),
        (("polcy=base",), "'polcy=base' is no option"),
        (("base",), "'base' is no option"),
        (("policy=base", "temperature=hot"), "a number"),
        (("policy=base", "temperature=-1"), "0 or more"),
        (("policy=base", "temperature=nan"), "0 or more"),
        (("policy=base", "max_new_tokens=1.5"), "a whole number"),
        (("policy=base", "max_new_tokens=0"), "at least 1"),
        (("policy=/no/such/folder",), "no such folder"),
        (("policy=nowhere",), "no such folder"),
    ],
)
def test_chat_refuses_bad_input_before_loading_anything(arguments, said, capsys, monkeypatch):
    monkeypatch.setattr(terminal, "load_engine", lambda policy: pytest.fail("loaded"))
    with pytest.raises(BadInput, match=said):
        terminal.parse(arguments)
    assert terminal.main(arguments) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and said in told


def test_chat_names_a_folder_that_is_no_model(run_folder, capsys):
    assert terminal.main([f"policy={run_folder}"]) == 1
    err = capsys.readouterr().err
    assert "is no model folder" in err and "policy=" in err and "model.path" not in err


def test_chat_help_needs_no_torch():
    code = "import sys, runpy; sys.argv = ['collab', 'chat', '--help']\n"
    code += "try: runpy.run_module('collab', run_name='__main__')\n"
    code += "except SystemExit as end: sys.exit(end.code or ('torch' in sys.modules))\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "policy=base" in done.stdout
