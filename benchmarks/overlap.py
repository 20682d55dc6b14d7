"""The row on overlap: whole steps of training with a user of 1 s latency, overlapped with the next rollouts or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Figures, Setting, compare
from benchmarks.peer import PeerFailed
from benchmarks.steps import ROOT

STALENESS = 2
STEPS = 6
_LATENCY = 1.0  # seconds of each answer of the user's server
_TAIL = 2000  # characters of the log of a run that failed
TRAINING = (
    "experiment=doc_edit",
    "algorithm=grpo",
    "user=hybrid",  # the agenda's answers, after one call of its voice each
    "user.endpoint.kind=http",
    "user.endpoint.model=user",
    "user.retries=0",
    "cache=off",  # otherwise the second run would not wait
    "callbacks=quiet",
    "logger=csv",
    "threads=1",
    "strategy=ddp",
    "trainer.accelerator=cpu",
    f"trainer.max_steps={STEPS}",
    "trainer.goals_per_step=2",
    "trainer.max_invalid=1",
    "sampler.group_size=4",
    "sampler.equal_turns=false",
    "sampler.window=2",
    "task.max_new_tokens=16",
    "evaluation.num_conversations=1",
)


def short_goals(folder: Path) -> list[str]:
    """Overrides for goals whose references fit short replies: a step that decodes little mostly waits for its user."""
    typed = []
    for split, numbers in (("train", range(12)), ("val", range(12, 13)), ("test", range(13, 15))):
        goals = (
            {
                "id": f"{split}-{number}",
                "single_turn_prompt": f"Write a notice about room {number}.",
                "single_turn_completion": f"Room {number} is closed today.",
                "single_turn_metadata": {"title": f"room {number}", "form": "notice", "preferences": {"tone": "brief"}},
            }
            for number in numbers
        )
        file = folder / f"{split}.jsonl"
        file.write_text("".join(json.dumps(goal) + "\n" for goal in goals), encoding="utf-8")
        typed.append(f"task.{split}_file={file}")
    return typed


def overlap_vs_strict(setting: Setting) -> Figures:
    """Seconds of a step, the mean over a run; ours is overlapped, the peer is strict."""
    server = setting.peer(None, "user_server", latency=_LATENCY)

    def steps(staleness: int) -> Callable[[], float]:
        def seconds() -> float:
            places = (f"user.endpoint.base_url={server.told['url']}", f"model.path={setting.model}")
            return _seconds_per_step([*TRAINING, *places, f"rollout.max_staleness={staleness}"])

        return seconds

    return compare(setting, steps(STALENESS), steps(0))


def _seconds_per_step(overrides: list[str]) -> float:
    """Train in two processes with a core each; from the start of training to the end of the last step."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*overrides, *short_goals(Path(folder))]
        script = str(Path(__file__).with_name("scaled_train.py"))
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MEASURED": folder, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*start, *overrides, f"output_dir={folder}/run"],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise PeerFailed(f"A training failed: {done.stdout[-_TAIL:]}")
        ranks = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("rank*.json"))]
    return max(rank["steps_seconds"] for rank in ranks) / STEPS
