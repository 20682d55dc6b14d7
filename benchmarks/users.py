"""Users and judges with local weights: are their answers in form, and how do the users speak?

    python benchmarks/users.py --model FOLDER_OR_ID --write     # writes docs/results/users.json

The assistant's side is that of `data/demonstrated.jsonl`, so all users hear the same questions. For `user=agenda`,
`user=hybrid` and `user=local` (`llm_*`) it prints what `collab simulator-report` measures, with the share of distinct
word pairs among all word pairs of all messages (`distinct_pairs`) and the standard deviation of a message's number of
words (`words_spread`), and how many messages fell back on the agenda's words. `--users agenda hybrid` ends here, and
`--write` then keeps the other figures. Without it, the same model judges the agenda's conversations, without a second
try. At last it decodes replies of the same length with and without a schema; the overhead is the median of the ratios,
a pair after the other. `guard_*` are the figures of `python -m benchmarks.guards`, which `--write` renews.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of `python benchmarks/users.py`

from benchmarks.decoding import chats
from benchmarks.demonstrations import read_sides
from benchmarks.goals import FOLDER
from benchmarks.guards import results as guard_figures
from benchmarks.steps import machine
from collab.app.report_sources import Played, Sources, play_with
from collab.chat.base import ChatModel, Sampling
from collab.chat.structured import schema_of
from collab.conversation import Conversation, Goal
from collab.datamodules.goals import load_goals
from collab.parsing.english import words
from collab.randomness import RngKey
from collab.rewards.judge import Interactivity, Judge
from collab.simulation.user_measures import measure, messages_of
from collab.util.files import write_json

USERS = ("agenda", "hybrid", "llm")
WRITTEN = Path(__file__).resolve().parent.parent / "docs" / "results" / "users.json"
LONG = schema_of(text={"type": "string", "minLength": 400})  # a reply that the length limit ends


def sides(count: int) -> list[tuple[Goal, list[str]]]:
    """A goal and what the assistant says about it; one conversation of each of `count` training goals."""
    goals = {goal.id: goal for goal in load_goals(FOLDER / "train.jsonl", "train")}
    found = [(goals[conv.split("/")[0]], messages) for conv, messages in read_sides().items() if conv.endswith("/1")]
    return found[:: max(1, len(found) // count)][:count]


def figures(name: str, played: Played) -> dict[str, Any]:
    """What `collab simulator-report` measures of a user: means over its conversations, None where there is none."""
    rows = measure(played.conversations)
    known = {what: [value for row in rows if (value := row[what]) is not None] for what in rows[0]}
    found = {f"{name}_{what}": statistics.fmean(values) if values else None for what, values in known.items()}
    problems = {kind: count for kind, count in played.problems.items() if count}
    valid = [talk for talk in played.conversations if talk.valid]
    said = [words(text) for talk in valid for text in messages_of(talk)]
    pairs = [pair for each in said for pair in itertools.pairwise(each)]
    found[f"{name}_distinct_pairs"] = len(set(pairs)) / len(pairs) if pairs else None
    found[f"{name}_words_spread"] = statistics.stdev(map(len, said)) if len(said) > 1 else None
    return {**found, f"{name}_seconds": played.seconds, f"{name}_problems": problems}


async def overhead(engine: ChatModel, requests: int, tokens: int, runs: int) -> float:
    """Share of the time that the schema adds to decoding `requests` replies at once."""

    async def seconds(schema: str) -> float:
        sampling = Sampling(tokens, ignore_eos=True, schema=schema)
        keys = (RngKey(1, goal=str(number)) for number in range(requests))
        began = time.perf_counter()
        await asyncio.gather(*(engine.complete(c, sampling, k) for c, k in zip(chats(requests), keys, strict=True)))
        return time.perf_counter() - began

    await seconds(LONG)
    ratios = []
    for _ in range(runs):
        free = await seconds("")
        ratios.append(await seconds(LONG) / free)
    return statistics.median(ratios) - 1


def judge_figures(model: str, talks: list[Conversation], requests: int) -> dict[str, Any]:
    """What the model makes of conversations as their judge, and what a schema costs it."""
    from collab.app import build
    from collab.app.compose import load_config
    from collab.callbacks.progress import Progress
    from collab.config.schema import EndpointConfig

    config = load_config("evaluate", ["experiment=doc_edit"])
    with Progress(animate=False) as progress, build.endpoints(config, progress) as endpoints:
        engine = build.chat_model(config, EndpointConfig(kind="local", model=model), endpoints)
        metric = Interactivity()
        metric.judge = Judge(engine, Sampling(400, 0.0, adapter=False), 0, 1, Counter())

        async def judged() -> list[Any]:
            return list(await asyncio.gather(*map(metric, talks)))

        verdicts = asyncio.run(judged())
        return {
            "judge_in_form": sum(verdict.value is not None for verdict in verdicts) / len(verdicts),
            "judge_scores": [verdict.value for verdict in verdicts],
            "schema_overhead": asyncio.run(overhead(engine, requests, 48, 3)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of user and judge")
    parser.add_argument("--conversations", type=int, default=12)
    parser.add_argument("--users", nargs="+", choices=USERS, help="these users alone, and no judge")
    parser.add_argument("--requests", type=int, default=32, help="replies at once, for the overhead of a schema")
    parser.add_argument("--write", action="store_true", help="write docs/results/users.json")
    parser.add_argument("--show", action="store_true", help="print the conversations")
    args = parser.parse_args()

    from collab.app import build
    from collab.app.compose import load_config
    from collab.callbacks.progress import Progress

    found: dict[str, Any] = {}
    played: dict[str, list[Conversation]] = {}
    asked = sides(args.conversations)
    sources = Sources([], {}, [goal for goal, _ in asked], [messages for _, messages in asked])
    for name in args.users or USERS:
        option = "local" if name == "llm" else name  # `hybrid` speaks from local weights, too
        local = [] if name == "agenda" else [f"user.endpoint.model={args.model}"]
        config = load_config("evaluate", ["experiment=doc_edit", f"user={option}", *local])
        with Progress(animate=False) as progress, build.endpoints(config, progress) as endpoints:
            one = play_with(config, config.user, sources, endpoints, lambda: None)
        played[name] = one.conversations
        found |= figures(name, one)
        if name == "hybrid":
            # With what it would have said behind the last stored reply: there a conversation has no known end.
            messages = sum(len(talk.turns) + (talk.ended_by == "") for talk in one.conversations)
            found["hybrid_fallback"] = one.problems["user_fallback"] / messages

    if not args.users:
        found |= judge_figures(args.model, played["agenda"], args.requests)
    if args.show:
        for name, talks in played.items():
            for talk in talks:
                print(f"\n## {name} {talk.user} {talk.goal.id} {talk.ended_by}")
                print("\n".join(f"  {turn.user}\n  > {turn.reply.text}" for turn in talk.turns))
    print(json.dumps(found, indent=1))
    if args.write:
        command = f"python benchmarks/users.py --model {Path(args.model).name} --conversations {args.conversations}"
        if not args.users:
            write_json(WRITTEN, {"command": command, "machine": machine(), **found, **guard_figures()})
            return
        kept = json.loads(WRITTEN.read_text())
        commands = dict.fromkeys(
            (f"{name}_command" for name in args.users), f"{command} --users {' '.join(args.users)}"
        )
        write_json(WRITTEN, {**kept, **commands, **found})


if __name__ == "__main__":
    main()
