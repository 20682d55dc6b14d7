"""A task with tools is trained: two steps, with a tiny model whose words are calls."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from composing import load_config
from models import tiny_lm
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from collab.app.train import train
from collab.config.checks import check

CODE = "def put(state, day):\n    state[day] = 'mine'\n    return sorted(state)\n"
WORDS = [f'<tool_call>{{"name":"put","arguments":{{"day":"{day}"}}}}</tool_call>' for day in ("Monday", "Friday")]


def folder_of_model(folder: Path) -> Path:
    """A random model that says one of two calls, a word, or nothing."""
    vocabulary = {word: place for place, word in enumerate(["<unk>", "<s>", "</s>", *WORDS, "Which", "assistant"])}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}assistant "
    tokenizer.save_pretrained(folder)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    sizes |= {"num_key_value_heads": None, "max_position_embeddings": None, "initializer_range": 0.5}
    tiny_lm(len(tokenizer), eos_token_id=2, **sizes).save_pretrained(folder)
    return folder


def test_two_steps_with_a_stateful_tool(tmp_path):
    (tmp_path / "tools.py").write_text(CODE)
    for split, names in {"train": "ab", "val": "e", "test": "f"}.items():
        goals = [
            {
                "id": name,
                "single_turn_prompt": f"Take Monday for {name}.",
                "single_turn_completion": f"Monday is taken for {name}.",
                "single_turn_metadata": {
                    "agenda": {"makes": "action", "opening": "I want a day.", "items": []},
                    "state": {"Sunday": name},
                    "wanted": {"Sunday": name, "Monday": "mine"},
                },
            }
            for name in names
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(goal) + "\n" for goal in goals))
    schema = "{put: {description: Takes a day., parameters: {type: object}}}"
    config = load_config(
        "train",
        [
            *("task=kiln", "algorithm=grpo_small", "user=agenda", "sampler=small", "callbacks=quiet", "logger=csv"),
            *(f"task.{split}_file={tmp_path}/{split}.jsonl" for split in ("train", "val", "test")),
            f"model.path={folder_of_model(tmp_path / 'model')}",
            f"task.tools.code=file://{tmp_path}/tools.py",
            *("~task.tools.functions.free", "~task.tools.functions.book", "~task.tools.functions.cancel"),
            f"+task.tools.functions={schema}",
            *("task.max_turns=3", "task.max_new_tokens=2", "precision=fp32", "trainer.accelerator=cpu", "threads=1"),
            *("trainer.max_steps=2", "trainer.goals_per_step=2", "trainer.val_every=0", "sampler.group_size=2"),
            *("model.lora.r=4", "algorithm.warmup_steps=0", "algorithm.lr=0.01", "evaluation.num_conversations=1"),
            *("sampler.window=2", "sampler.num_samples=1", "seed=3"),
        ],
        str(tmp_path / "run"),
    )
    check(config, "train")
    (tmp_path / "run").mkdir()
    train(config)
    rows = list(csv.DictReader((tmp_path / "run/csv/metrics.csv").read_text().splitlines()))
    assert len([row for row in rows if row.get("train/loss")]) == 2
    records = [json.loads(line) for line in (tmp_path / "run/transcripts.jsonl").read_text().splitlines()]
    trained = [record for record in records if record["phase"] == "train"]
    assert {record["parts"]["booked"] for record in trained} == {0.0, 1.0}  # some took Monday alone, some did not
    for record in trained:
        said = [message["content"] for message in record["messages"] if message["role"] != "system"]
        taken = {"Sunday"}
        for text, following in zip(said, said[1:], strict=False):
            if "<tool_call>" in text:  # each result is of this conversation's own calls
                taken |= {day for day in ("Monday", "Friday") if f'"{day}"' in text}
                assert json.loads(following.splitlines()[-2]) == sorted(taken)
