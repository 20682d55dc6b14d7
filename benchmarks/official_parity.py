"""Records what the official package makes of the cases in `official_cases.py`, which a test holds ours against.

    python -m benchmarks.official_parity --examples CollabLLM/examples     # record
    python -m benchmarks.official_parity                                   # print the record beside ours

`--examples` is the folder of that name of https://github.com/microsoft/CollabLLM: the package has no metrics. The
package is installed into an environment of its own unless `--python` names an interpreter that has it. Both sides need
tiktoken's table of cl100k_base.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.environments import python_of
from benchmarks.official_cases import GOALS, Case, Server, cases
from benchmarks.peer import Peer
from benchmarks.rows import FOLDER
from collab.app import build
from collab.app.compose import load_config
from collab.chat.endpoints import Endpoints
from collab.conversation import Conversation, Score
from collab.randomness import RngKey

RECORDED = FOLDER / "data" / "official_parity.json"
SAMPLES, WINDOW = 3, 2
_TASKS = {"doc_edit": "document editing", "code": "code generation", "math": "question answering"}
METRICS = {  # the official name -> ours; the official weights
    "doc_edit": {"document->bleu": ("bleu", 1.0), "interactivity": ("interactivity", 1.0)},
    "code": {"runnable code->pass_rate": ("pass_rate", 1.0), "interactivity": ("interactivity", 1.0)},
    "math": {"accuracy": ("accuracy", 1.0), "interactivity": ("interactivity", 1.0)},
}
TOKENS = {"doc_edit": -0.1, "code": -0.5, "math": -0.5}


def official(examples: str, python: str | Path) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """(case, part -> its value in each future), one case after the other; MR is one of the parts."""
    with Server() as server:
        setting = {"examples": os.path.abspath(examples), "url": server.url}
        script = FOLDER / "peers" / "official_scores.py"
        peer = Peer(python, script, setting, {}, Path(tempfile.mkdtemp()) / "official.log")
        try:
            for case in cases():
                goal, named = GOALS[case.task], METRICS[case.task]
                metadata = {}
                if case.task == "code":
                    metadata = {
                        "entry_point": "task_func",
                        "test": goal.metadata["tests"],
                        "extraction_requirement": "-",
                    }
                answer = peer.ask(
                    "reward",
                    task=_TASKS[case.task],
                    prompt=goal.prompt,
                    reference=goal.reference,
                    metadata=metadata,
                    weights={name: weight for name, (_, weight) in named.items()} | {"token_amount": TOKENS[case.task]},
                    messages=case.messages,
                    samples=SAMPLES if case.is_context else 1,
                    new=2 * WINDOW if case.is_context else 0,
                )["parts"]
                ours = {name: own for name, (own, _) in named.items()} | {"token_amount": "tokens_read", "MR": "MR"}
                yield case.name, {ours[name]: list(map(float, values)) for name, values in answer.items()}
        finally:
            peer.close()


def own(case: Case, url: str, *overrides: str) -> list[Score]:
    """The score of each future of a case by `definitions=official`."""
    config = load_config(
        "evaluate",
        [
            *(f"task={case.task}", "definitions=official", "user=llm", "judge=llm", "task.max_turns=9"),
            *(f"{role}.endpoint.{key}" for role in ("user", "judge") for key in (f"model={role}", f"base_url={url}")),
            *(f"sampler.window={WINDOW}", f"sampler.num_samples={SAMPLES}", "cache=off", "user.mistakes=0"),
            *("evaluation.endpoint.model=policy", f"evaluation.endpoint.base_url={url}", *overrides),
        ],
        tempfile.mkdtemp(),  # where it writes what was spent
    )

    with Endpoints(config) as endpoints:
        simulation = build.simulation(config, endpoints, lambda: None)
        chat = case.conversation()

        async def scores() -> list[Score]:
            if not case.is_context:
                return [await simulation.reward(chat.with_end("max_turns"))]
            *before, last = chat.turns
            players = simulation.players(endpoints.model(config.evaluation.endpoint))
            context = Conversation(chat.goal, turns=tuple(before), pending=last.user)
            (made,) = await simulation.scored(players, context, [last.reply], RngKey(1, goal=chat.goal.id))
            return list(made.scores)

        return asyncio.run(scores())


def table() -> str:
    """Each case in Markdown: the MR of both sides, and the largest difference of any part of any future."""
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    lines = [
        "| case | futures | MR, package | MR, ours | parts | largest difference |",
        "|---|---:|---:|---:|---|---:|",
    ]
    with Server() as server:
        for case in cases():
            theirs, scores = recorded[case.name], own(case, server.url)
            names = [name for name in theirs if name != "MR"]
            ours: dict[str, list[Any]] = {name: [score.parts[name] for score in scores] for name in names}
            ours["MR"] = [score.reward for score in scores]
            worst = max(
                abs(own - their) for name in theirs for own, their in zip(ours[name], theirs[name], strict=True)
            )
            mr = (f"{fmean(values['MR']):.6f}" for values in (theirs, ours))
            cells = [case.name, str(len(scores)), *mr, ", ".join(f"`{name}`" for name in names), f"{worst:.0e}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples")
    parser.add_argument("--python")
    given = parser.parse_args()
    if given.examples is None:
        print(table())
        return
    found = {}
    for name, parts in official(given.examples, given.python or python_of("collabllm")):
        found[name] = parts
        RECORDED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{len(found)} cases in {RECORDED}")


if __name__ == "__main__":
    main()
