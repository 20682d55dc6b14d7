"""What a training step takes by `collab estimate cluster=`: held against runs, and the paper's (docs/scaling.md).

    python -m benchmarks.paper_cluster

Prints two tables. The first takes the speed of one process from `benchmarks/scaling.json` and predicts that of two. The
second is what `collab estimate train experiment=paper/doc_edit cluster=h100 ...` prints.
"""

from __future__ import annotations

import json
from dataclasses import replace

from benchmarks.page import SCALING
from benchmarks.paper_costs import goals
from benchmarks.scaling import COMMON, TUNED
from collab.app.cluster import devices, predict, setup
from collab.app.compose import load_config
from collab.app.estimate import estimate

RULES = ("user=agenda", "judge=none", "definitions=collab")
HOSTED = ("cluster.user_seconds=2",)
SERVED = ("model=llama31_70b", "engine=vllm", "cluster.servers=1", "cluster.server_devices=4", *RULES)
PAPER = {  # row -> overrides
    "8B LoRA, `ddp`, 8 x H100": ("strategy=ddp", *HOSTED),
    "8B LoRA, `ddp`, 4 x 8 x H100": ("strategy=ddp", "trainer.num_nodes=4", *HOSTED),
    "8B LoRA, `ddp`, 8 x H100, user and judge by rule": ("strategy=ddp", *RULES),
    "8B LoRA, `fsdp`, 4 x 8 x H100, user and judge by rule": ("strategy=fsdp", "trainer.num_nodes=4", *RULES),
    "70B LoRA, `fsdp`, 8 x H100 and a server of 4, user and judge by rule": ("strategy=fsdp", *SERVED),
}


def held_row(tuned: str, name: str, processes: int) -> str:
    """Tokens/s of a rollout: predicted from one process, and measured."""
    cases = json.loads(SCALING.read_text(encoding="utf-8"))["cases"][tuned]
    cpu = load_config("train", [*COMMON, *TUNED[tuned], "cluster=cpu", "strategy=ddp"])
    one, several = (predict(cpu, count, cpu.cluster) for count in (1, processes))
    faster = (one.reading + one.decoding) / (several.reading + several.decoding)
    before, measured = (cases[case]["tokens_per_s"] for case in ("one process", name))
    predicted = before * faster
    return f"| {tuned}, {name} | {before:.0f} | {predicted:.0f} | {measured:.0f} | {predicted / measured - 1:+.0%} |"


def paper_row(name: str, overrides: tuple[str, ...]) -> str:
    """Seconds of the parts of a step, idle share, memory, hours and dollars of a run."""
    typed = ["experiment=paper/doc_edit", "cluster=h100", "trainer.devices=8", "cluster.price=3", *overrides]
    config = load_config("train", typed)
    processes = devices(config)
    step = predict(config, processes, replace(config.cluster))
    _, peak = setup(config, processes, step).peak()
    hours = step.total / 3600 * config.trainer.max_steps
    usd = hours * config.cluster.price * (processes + config.cluster.servers * config.cluster.server_devices)
    calls = sum(call.usd(config) for call in estimate(config, goals(config), "train").expected)
    parts = (step.reading + step.decoding, step.waiting, step.update, step.sync, step.total)
    cells = [*(f"{part:.1f}" for part in parts), f"{step.idle:.0%}", f"{peak:.0f}", f"{hours:.2f}", f"{usd:.0f}"]
    return f"| {name} | {' | '.join([*cells, f'{calls:.0f}'])} |"


def main() -> None:
    print("| run | one process, tokens/s | two, predicted | two, measured | off by |\n|---|---:|---:|---:|---:|")
    for tuned in TUNED:
        print(held_row(tuned, "two, ddp", 2))
    head = (
        "| run | rollout, s | waiting, s | update, s | sync, s | step, s | idle | GB | run, h | GPUs, $ | hosted, $ |"
    )
    print(f"\n{head}\n|---|{'---:|' * 10}")
    for name, overrides in PAPER.items():
        print(paper_row(name, overrides))


if __name__ == "__main__":
    main()
