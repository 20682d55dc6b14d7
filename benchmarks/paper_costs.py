"""What the experiments of the paper cost with the hosted users and judges that ship, as docs/method/official.md has it.

    python -m benchmarks.paper_costs

Prints a table. The figures are those of `collab estimate experiment=paper/TASK algorithm=ALGORITHM judge=JUDGE`, with
goals of the sizes below in place of the published data, which this does not download.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from collab.app.compose import load_config
from collab.app.estimate import estimate
from collab.config.schema import Config
from collab.conversation import Goal
from collab.datamodules.goals import GoalSplits

TASKS, ALGORITHMS = ("doc_edit", "code", "math"), ("sft", "dpo", "online_dpo", "ppo")
# Option of the group `judge` -> its model. The first is that of paper/.
JUDGES = {"claude": "claude-sonnet-5", "openai": "gpt-6-luna", "qwen3": "Qwen/Qwen3-30B-A3B-Instruct-2507"}
# Characters of a goal's prompt and reference.
SIZES = {
    "doc_edit": (100, 3000),  # title and tags; an article at the limit of 500 words, at 6 characters a word
    # The card of bigcode/bigcodebench: 663.2 of a prompt, 124.0 of the code that is given, 426.0 of a solution.
    "code": (663, 550),
    # nlile/hendrycks-MATH-benchmark: 9803889 bytes in 12000 rows. That has the solution too, so it is too much.
    "math": (817, 10),
}


def goals(config: Config) -> GoalSplits:
    """Goals in the numbers of the config and the sizes of its task."""
    task = config.task
    prompt, reference = ("x" * size for size in SIZES[task.name])

    def made(split: str, count: int | None) -> list[Goal]:
        return [Goal(f"{split} {n}", prompt, reference) for n in range(count or 0)]

    return GoalSplits(made("train", task.num_train), made("val", task.num_val), made("test", task.num_test))


def row(config: Config) -> str:
    """A line of the table: tokens and dollars as expected with each judge, and dollars at most with the first."""
    made = estimate(config, goals(config), "train")
    expected, most = [], sum(call.usd(config) for call in made.total)
    for model in JUDGES.values():
        calls = [call if call.role == "user" else replace(call, model=model) for call in made.expected]
        expected.append(sum(call.usd(config) for call in calls))
    tokens = sum(call.tokens for call in made.expected) / 1e6
    figures = [f"{tokens:.1f}", *(f"{usd:.0f}" if usd >= 100 else f"{usd:.2f}" for usd in expected), f"{most:.0f}"]
    return f"| {' | '.join([f'`paper/{config.task.name}`', f'`{config.algorithm.name}`', *figures])} |"


def table(load: Callable[[str, Sequence[str]], Config] = load_config) -> str:
    """The table in Markdown; `load` is `load_config`, or one that is faster."""
    first, *_ = JUDGES
    head = ["experiment", "algorithm", "tokens, millions"]
    head += [f"with `judge={judge}`, $" for judge in JUDGES] + [f"at most, `judge={first}`, $"]
    rows = [
        row(load("train", [f"experiment=paper/{task}", f"algorithm={name}"])) for task in TASKS for name in ALGORITHMS
    ]
    return "\n".join([f"| {' | '.join(head)} |", f"|---|---|{'---:|' * (len(head) - 2)}", *rows])


if __name__ == "__main__":
    print(table())
