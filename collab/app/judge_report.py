"""What judges are worth: `collab judge-report judge=OPTION`. `--help` has the command line.

The conversations are stored ones (`report.chats`), or they are played as for `collab simulator-report`. Each judge
rates them by every metric of the task that a judge measures. Then it rates copies that a fair judge scores alike
(`collab.rewards.probes`), and compares each conversation with its padded copy in both orders. `collab.reports.judges`
says what is computed. Imports that need torch are inside functions.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collab.app.report_sources import OWN as USER
from collab.app.report_sources import REPORT, Sources, check_sources, play_with, read_sources, spread
from collab.app.resume import interruptible
from collab.config.schema import Config, LLMJudgeConfig, PairwiseConfig
from collab.conversation import Conversation, Score, as_record
from collab.parsing.agenda_items import makes
from collab.reports.judges import UNMOVED, agreement, judge_tables, mean_of, moved_by, shifts
from collab.reports.tables import markdown, rich_table
from collab.rewards.judge import JudgedMetric
from collab.rewards.metrics import applies
from collab.rewards.probes import by_rule, control, injected, injections, padded
from collab.util.errors import BadInput
from collab.util.files import write_json
from collab.util.targets import load_target

if TYPE_CHECKING:
    from collab.chat.endpoints import Endpoints
    from collab.rewards.pairwise import PairwiseJudge

JUDGE = "judge"  # the name of the config's judge
VERDICTS = "verdicts.jsonl"
INJECTED = 4  # conversations that get every injection


@dataclass(frozen=True)
class Rater:
    """One judge with one metric, which asks it whatever a rule would say.

    Attributes:
        metric: Has its judge.
        seed: Of the report.
    """

    metric: JudgedMetric
    seed: int

    async def scores(self, conversations: Sequence[Conversation]) -> list[float | None]:
        """A score for each; None where the metric does not apply to the goal, or no verdict could be had."""

        async def score(conversation: Conversation) -> float | None:
            return (await self.metric.ask(conversation)).value if applies(self.metric, conversation.goal) else None

        return list(await asyncio.gather(*map(score, conversations)))


def judges_of(config: Config) -> dict[str, Any]:
    """Name -> judge: the config's, and those of `report.judges`."""
    return {JUDGE: config.judge, **config.report.judges}


def judged_metrics(config: Config) -> dict[str, Any]:
    """Name -> class of each metric of the task that a judge measures."""
    classes = {name: load_target(metric.target, name) for name, metric in config.task.metrics.items()}
    return {name: cls for name, cls in classes.items() if issubclass(cls, JudgedMetric)}


def check_report(config: Config) -> Sources:
    """Read what is judged, and check the models that the report needs; loads none.

    Raises:
        BadInput: As `read_sources` and `check_sources`; or something is no judge, or has nothing to judge.
    """
    for name, judge in judges_of(config).items():
        key = "judge" if name == JUDGE else f"report.judges.{name}"
        if not isinstance(judge, LLMJudgeConfig):
            raise BadInput(
                f"{key} is no language model, and only a language model can be asked. Set judge=local, judge=openai or "
                "another option, and further judges by +judge@report.judges.NAME=OPTION."
            )
    if lacking := [name for name in ("scipy", "sklearn") if find_spec(name) is None]:
        raise BadInput(
            f"{' and '.join(lacking)} must be installed: agreement is computed with scipy and scikit-learn, which come "
            "with the extra `reports`. Install it by `pip install 'collab-llm[reports]'`."
        )
    if not judged_metrics(config):
        raise BadInput(
            f"task={config.task.name} has no metric that a judge measures: {', '.join(config.task.metrics)}. Take "
            "judge=helpfulness, or a task with interactivity."
        )
    if JUDGE in config.report.judges:
        raise BadInput(f"report.judges has {JUDGE}, which is the name of the first judge. Rename it.")
    playing = config.report.chats is None
    sources = read_sources(config, playing)
    check_sources(config, sources, "judge-report", playing)
    return sources


def judge_report(config: Config) -> None:
    """Ask all judges; write `report.json` and `report.md`, print the tables.

    Conversations that are played go to `transcripts.jsonl`. `verdicts.jsonl` gets the scores of each judge as soon as
    it has judged: judge, metric, number of the conversation, its goal, score, and that of its padded copy.
    """
    from collab.app import build
    from collab.callbacks.progress import Progress
    from collab.callbacks.transcripts import TranscriptWriter

    folder = Path(config.output_dir)
    sources = read_sources(config, playing=config.report.chats is None)
    with (
        interruptible("the same command; replies of servers are in the cache"),
        Progress(animate=config.callbacks.progress_bar) as progress,
        build.endpoints(config, progress) as endpoints,
    ):
        build.start(config)
        talks = sources.chats
        if not talks:
            progress.phase("conversations", len(sources.goals))
            talks = play_with(config, config.user, sources, endpoints, progress.advance).conversations
            progress.done()
            TranscriptWriter(folder).write(((talk, Score(None, {})) for talk in talks), phase="test", policy=USER)
        talks = [talk for talk in talks if talk.valid and talk.turns]
        if not talks:
            raise BadInput("No conversation is left to be judged: the user failed in all of them. Take another user.")
        report = asyncio.run(_asked(config, talks, endpoints, progress.say))
        progress.say(*endpoints.ledger.table())
        write_json(folder / REPORT, report)
        tables = judge_tables(report)
        (folder / "report.md").write_text("\n".join(markdown(*table) for table in tables), encoding="utf-8")
        for table in tables:
            progress.console.print(rich_table(*table))
            progress.say("")
        for what, name in (("figures", REPORT), ("tables", "report.md"), ("verdicts", VERDICTS)):
            progress.say(f"{what:>15}: {folder / name}")


async def _asked(
    config: Config, talks: Sequence[Conversation], endpoints: Endpoints, say: Callable[[str], None]
) -> dict[str, Any]:
    """`report.json`."""
    from collab.app import build
    from collab.rewards.pairwise import PairwiseJudge

    problems: dict[str, Counter[str]] = {}
    comparing: dict[str, PairwiseJudge] = {}
    scores: dict[str, dict[str, list[float | None]]] = {}  # metric -> judge -> scores of the conversations
    found: dict[str, dict[str, Any]] = {}
    goals = [talk.goal.id for talk in talks]
    verdicts = Path(config.output_dir) / VERDICTS
    verdicts.parent.mkdir(parents=True, exist_ok=True)
    verdicts.write_text("", encoding="utf-8")  # a report that was interrupted begins again
    rules = {name: await _ruled(config, cls, name, talks) for name, cls in judged_metrics(config).items()}
    for judge, node in judges_of(config).items():
        model = build.chat_model(config, node.endpoint, endpoints)
        problems[judge] = Counter()
        asked = build.make_judge(node, model, config.seed, problems[judge])
        comparing[judge] = PairwiseJudge(model, config.seed)
        lines = []
        for name, cls in judged_metrics(config).items():
            metric = cls(**config.task.metrics[name].options)
            metric.judge = asked
            say(f"{judge}: {name}, {len(talks)} conversations and their copies")
            own, longer, entry = await _judged(Rater(metric, config.seed), talks)
            for number, scored in enumerate(zip(goals, own, longer, strict=True)):
                values = dict(zip(("goal", "score", "padded"), scored, strict=True))
                lines.append({"judge": judge, "metric": name, "conversation": number, **values})
            scores.setdefault(name, {})[judge] = own
            if any(value is not None for value in rules[name]):
                entry["rule"] = agreement(goals, own, rules[name], config.seed)
            found.setdefault(judge, {})[name] = entry
        with verdicts.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if isinstance(config.evaluator, PairwiseConfig):
        comparing["evaluator"] = PairwiseJudge(
            build.chat_model(config, config.evaluator.endpoint, endpoints), config.seed
        )
    texts = [talk for talk in talks if makes(talk.goal) == "text"]
    pairs: dict[str, dict[str, Any]] = {}
    for one, other in combinations(found, 2):
        pairs[f"{one}, {other}"] = {
            name: agreement(goals, by_judge[one], by_judge[other], config.seed) for name, by_judge in scores.items()
        }
    return {
        "conversations": len(talks),
        "judges": found,
        "agreement": pairs,
        "position": {name: await _positions(judge, texts) for name, judge in comparing.items()} if texts else {},
        "problems": {name: {kind: n for kind, n in sorted(kinds.items()) if n} for name, kinds in problems.items()},
        "config": asdict(config),
    }


async def _ruled(config: Config, cls: Any, name: str, talks: Sequence[Conversation]) -> list[float | None]:
    metric = cls(**config.task.metrics[name].options)
    most = getattr(config.user, "items_per_answer", 2)
    return list(await asyncio.gather(*(by_rule(metric, talk, most) for talk in talks)))


async def _judged(
    rater: Rater, talks: Sequence[Conversation]
) -> tuple[list[float | None], list[float | None], dict[str, Any]]:
    """The scores of the conversations and of their padded copies, and what all copies do to the scores."""
    goals, seed = [talk.goal.id for talk in talks], rater.seed
    own = await rater.scores(talks)
    longer = await rater.scores([padded(talk) for talk in talks])
    some = spread(range(len(talks)), INJECTED)
    before, texts = [own[i] for i in some], injections()
    moved: dict[str, dict[str, list[float | None]]] = {}
    for kind, copy in (("injected", injected), ("control", control)):
        copies = await rater.scores([copy(talks[i], text) for text in texts for i in some])
        moved[kind] = {text: copies[n * len(some) : (n + 1) * len(some)] for n, text in enumerate(texts)}
    by_text = moved_by(before, moved["injected"])
    places, start = [goals[i] for i in some] * len(texts), before * len(texts)
    after = {kind: [value for values in each.values() for value in values] for kind, each in moved.items()}
    return (
        own,
        longer,
        {
            "score": mean_of(goals, own, seed),
            "padded": shifts(goals, own, longer, seed),
            **{kind: shifts(places, start, values, seed) for kind, values in after.items()},
            "injections": {
                "texts": len(texts),
                "unmoved": sum(shift is not None and abs(shift) <= UNMOVED for shift in by_text.values()),
                "shifts": by_text,
            },
        },
    )


async def _positions(judge: PairwiseJudge, talks: Sequence[Conversation]) -> dict[str, Any]:
    """Question -> position and length bias of comparisons of each conversation with its padded copy."""
    from collab.rewards.pairwise import QUESTIONS, Chat

    goals, found = [talk.goal.id for talk in talks], {}
    for question in QUESTIONS:
        bias: dict[str, list[float | None]] = {"first": [], "same": [], "padded": []}
        sides = [(Chat.of(as_record(padded(talk))), Chat.of(as_record(talk))) for talk in talks]
        asked = (judge.leans(talk.goal, *pair, question) for talk, pair in zip(talks, sides, strict=True))
        for leans in await asyncio.gather(*asked):
            if leans is None:
                bias["first"].append(None)
                bias["same"].append(None)
                bias["padded"].append(None)
                continue
            padded_first, plain_first = map(judge.verdict, leans)  # 1: the one shown first wins
            bias["first"].append((padded_first + plain_first) / 2)
            bias["same"].append(float(padded_first == 1 - plain_first))
            bias["padded"].append((padded_first + 1 - plain_first) / 2)
        found[question] = {name: mean_of(goals, values, judge.seed) for name, values in bias.items()}
    return found
