"""One small training run of the real model, which several tests look at."""

from __future__ import annotations

import json
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import finished
from models import tiny_lm, word_tokenizer

from collab.reports.results import validate_results

ROWS = {
    "train": [("kiln", "The kiln fires on Tuesday."), ("ferry", "Ferry tickets cost two euros.")],
    "val": [("pear", "Pears are ripe in August."), ("choir", "The choir sings at noon.")],
    "test": [("bakery", "We bake rye bread daily."), ("library", "The library opens at nine.")],
}
SMALL = (
    "experiment=doc_edit",
    "precision=fp32",
    "seed=3",
    "task.max_turns=2",
    "task.max_new_tokens=8",
    "task.metrics.bleu.options.with_notes=false",  # so that what a random model says differs in reward
    "evaluation.num_conversations=1",
    "callbacks=quiet",
    "logger=csv",
)
TRAINING = (
    "trainer.max_steps=2",
    "trainer.goals_per_step=2",
    "trainer.val_every=1",
    "checkpoint.every_n_steps=1",
    "sampler.group_size=2",
    "model.lora.r=4",
    "algorithm.warmup_steps=0",
    "algorithm.lr=0.005",  # so that two steps already change what is said
)
LETTERS = (
    "algorithm=grpo",
    "trainer.accelerator=cpu",
    "engine.deterministic=true",
    "threads=1",
    "trainer.max_steps=4",
    "trainer.val_every=2",
    "checkpoint.every_n_steps=1",
    "sampler.group_size=4",
    "engine.max_batch=8",
    "task.metrics.bleu.target=commands.Early",
    "~task.metrics.bleu.options.finished_only",
    "~task.metrics.bleu.options.with_notes",
    "algorithm.schedule=linear",
    "algorithm.lr=0.05",
)


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and what it printed."""

    folder: Path
    output: str

    @property
    def results(self) -> dict[str, Any]:
        found = json.loads((self.folder / "results.json").read_text())
        validate_results(found)
        return found

    @property
    def transcripts(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "transcripts.jsonl").read_text().splitlines()]


class Runner:
    """Runs the two commands on six goals with short references."""

    def __init__(self, goals: Path) -> None:
        self.files = []
        for split, rows in ROWS.items():
            file = goals / f"{split}.jsonl"
            records = [
                {
                    "id": f"{split}-{title}",
                    "single_turn_prompt": f"Write a notice about the {title}.",
                    "single_turn_completion": reference,
                    "single_turn_metadata": {
                        "title": f"the {title}",
                        "form": "notice",
                        "preferences": {"tone": "friendly"},
                    },
                }
                for title, reference in rows
            ]
            file.write_text("".join(json.dumps(record) + "\n" for record in records))
            self.files.append(f"task.{split}_file={file}")
        self.training = [*SMALL, *self.files, *TRAINING]  # all overrides of a small training run

    def __call__(self, entry: str, folder: Path, *overrides: str) -> Run:
        done = finished(entry, *SMALL, *self.files, *overrides, f"output_dir={folder}")
        assert done.returncode == 0, f"{' '.join(done.args)}\n{done.stdout}\n{done.stderr}"
        return Run(folder, done.stdout)


@pytest.fixture(scope="session")
def runner(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(tmp_path_factory.mktemp("goals"))


@pytest.fixture(scope="session")
def trained(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`train.py`, two steps."""
    return runner("train", tmp_path_factory.mktemp("run") / "first", *TRAINING, "task.num_val=1")


@pytest.fixture(scope="session")
def letters_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that says letters, with a tokenizer of a few words: it loads and speaks sooner than any other."""
    folder = tmp_path_factory.mktemp("letters") / "model"
    template = "{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}assistant "
    tokenizer = word_tokenizer(["user", "assistant", "system", *string.ascii_lowercase], template)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": None, "max_position_embeddings": None, "initializer_range": 0.5}
    tiny_lm(len(tokenizer), eos_token_id=2, **sizes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def letters(letters_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of that model, which learns within four steps which letters are wanted."""
    goals = Runner(tmp_path_factory.mktemp("goals"))
    return [*goals.training, *LETTERS, f"model.path={letters_model}"]
