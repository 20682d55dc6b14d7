"""Speed as ratios: ours and a peer on the same work, in turn, in one run; medians.

    python benchmarks/run.py                      # all rows
    python benchmarks/run.py decode_vs_generate   # one
    python benchmarks/run.py --runs 5 --tokens 64 --requests 32

A row is printed as it is measured. `--write` puts all measured rows into `benchmarks/results.json`, in place of older
figures of the same rows, and the table into `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from collab.chat.base import Sampling
from collab.config import AgendaUserConfig, ModelConfig
from collab.conversation import Conversation, Key, Message
from collab.datamodules.goals import load_splits
from collab.generation.engine import LocalEngine
from collab.modules.loading import load_model, load_tokenizer, resolve_device, resolve_dtype
from collab.quiet import quiet
from collab.rewards.metrics import Bleu
from collab.rewards.reward import ConversationReward
from collab.simulation.agenda import AgendaUser
from collab.simulation.rollout import Players, multiturn_reward, sample_candidates
from collab.simulation.user import UserTurn

FOLDER = Path(__file__).parent
SYSTEM = "You are an editor. Ask the user short clarifying questions. Use the user's facts to write the text."


@dataclass(frozen=True)
class Setting:
    """What all rows share.

    Attributes:
        lm: The model, without an adapter, in `dtype` on `device`.
        tokenizer: Its tokenizer.
        runs: Counted runs of each side.
        requests: Sequences decoded at a time.
        tokens: New tokens of each.
    """

    lm: Any
    tokenizer: Any
    runs: int
    requests: int
    tokens: int

    def engine(self) -> LocalEngine:
        engine = LocalEngine(self.lm, self.tokenizer)
        engine._stops = set()  # exactly the stated number of tokens on both sides
        return engine


@dataclass(frozen=True)
class Figures:
    ours: float
    peer: float
    ratio: float
    unit: str
    wanted: str
    what: str


def in_turn(runs: int, *sides: Callable[[], float]) -> list[list[float]]:
    """Each side's values, taken alternately after one run that does not count."""
    for side in sides:
        side()
    values: list[list[float]] = [[] for _ in sides]
    for _ in range(runs):
        for found, side in zip(values, sides, strict=True):
            found.append(side())
    return values


def seconds(work: Callable[[], Any]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def rate(count: float, work: Callable[[], Any]) -> Callable[[], float]:
    return lambda: count / seconds(work)


def compare(setting: Setting, ours: Callable[[], float], peer: Callable[[], float]) -> tuple[float, float, float]:
    """Medians of both sides, and the median of the ratios of neighbouring runs."""
    mine, theirs = in_turn(setting.runs, ours, peer)
    ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
    return statistics.median(mine), statistics.median(theirs), ratio


# --- decoding --------------------------------------------------------------------------------------------------------


def prompts(count: int) -> list[list[Message]]:
    """Chats of the same number of tokens."""
    text = "Hello, I need a notice about shed number {:02d} of the garden club. Can you help me with that?"
    return [[Message("system", SYSTEM), Message("user", text.format(n))] for n in range(count)]


def decoding(setting: Setting) -> Callable[[], float]:
    """New tokens a second of the engine, prompts included."""
    chats = prompts(setting.requests)
    sampling = Sampling(setting.tokens, 0.7)

    def work() -> None:
        engine = setting.engine()

        async def everyone() -> None:
            keys = (Key(1, goal=str(n)) for n in range(len(chats)))
            await asyncio.gather(*(engine.complete(c, sampling, k) for c, k in zip(chats, keys, strict=True)))

        asyncio.run(everyone())

    return rate(setting.requests * setting.tokens, work)


def decode_vs_generate(setting: Setting) -> Figures:
    engine = setting.engine()
    ids = [engine.format.encode(chat)[0] for chat in prompts(setting.requests)]
    assert len({len(row) for row in ids}) == 1, "generate gets no padding"
    batch = torch.tensor(ids, device=setting.lm.device)

    def generate() -> None:
        with torch.no_grad():
            out = setting.lm.generate(
                batch,
                attention_mask=torch.ones_like(batch),
                do_sample=True,
                temperature=0.7,
                top_k=0,
                top_p=1.0,
                min_new_tokens=setting.tokens,
                max_new_tokens=setting.tokens,
                pad_token_id=0,
            )
        assert out.shape[1] == batch.shape[1] + setting.tokens

    found = compare(setting, decoding(setting), rate(setting.requests * setting.tokens, generate))
    what = f"decoding, {setting.requests} requests of {setting.tokens} tokens, against transformers' generate"
    return Figures(*found, "tokens/s", ">= 2", what)


def decode_vs_floor(setting: Setting) -> Figures:
    linears = [module for module in setting.lm.modules() if isinstance(module, torch.nn.Linear)]
    dtype, device = setting.lm.dtype, setting.lm.device
    inputs = {n: torch.randn(setting.requests, n, dtype=dtype, device=device) for n in {m.in_features for m in linears}}

    def products() -> None:
        with torch.no_grad():
            for _ in range(setting.tokens):
                for linear in linears:
                    linear(inputs[linear.in_features])

    found = compare(setting, decoding(setting), rate(setting.requests * setting.tokens, products))
    return Figures(*found, "tokens/s", ">= 0.4", "decoding, against its matrix products alone")


# --- forward sampling ------------------------------------------------------------------------------------------------


class LateUser:
    """The agenda user behind a delay."""

    def __init__(self, delay: float) -> None:
        self.user, self.delay = AgendaUser(AgendaUserConfig(), max_turns=8), delay

    async def respond(self, conversation: Conversation, key: Key) -> UserTurn:
        await asyncio.sleep(self.delay)
        return await self.user.respond(conversation, key)


def forward_sampling(
    setting: Setting, contexts: int, candidates: int, samples: int, delay: float
) -> Callable[[], float]:
    """Seconds for the futures (w = 2) of so many contexts, candidates and samples; candidates are drawn before."""
    goals = load_splits(_task()).train[:contexts]
    engine = setting.engine()
    players = Players(engine, LateUser(delay), Sampling(min(setting.tokens, 48), 0.7), max_turns=8)
    reward = ConversationReward({"bleu": (1.0, Bleu())})
    chats = [Conversation(goal, SYSTEM, pending=f"Hi, I need a text about {goal.metadata['title']}.") for goal in goals]

    async def draw() -> list[Any]:
        keys = [Key(1, goal=goal.id) for goal in goals]
        return [await sample_candidates(players, c, candidates, k) for c, k in zip(chats, keys, strict=True)]

    replies = asyncio.run(draw())

    async def futures() -> None:
        await asyncio.gather(
            *(
                multiturn_reward(
                    chat,
                    found,
                    players=players,
                    reward=reward,
                    window=2,
                    num_samples=samples,
                    key=Key(1, goal=chat.goal.id),
                )
                for chat, found in zip(chats, replies, strict=True)
            )
        )

    def work() -> None:
        engine.forget()
        asyncio.run(futures())

    return lambda: seconds(work)


def samples_1_to_8(setting: Setting) -> Figures:
    eight, one = (forward_sampling(setting, 4, 2, samples, 0.0) for samples in (8, 1))
    what = "forward samples per candidate 8 against 1 (4 contexts x 2 candidates, w = 2)"
    return Figures(*compare(setting, eight, one), "s", "<= 4", what)


def user_latency(setting: Setting) -> Figures:
    late, prompt = (forward_sampling(setting, 8, 2, 4, delay) for delay in (1.0, 0.0))
    slow, fast = in_turn(setting.runs, late, prompt)
    added = statistics.median(a - b for a, b in zip(slow, fast, strict=True))
    what = "64 conversations, w = 2, user latency 1 s instead of 0: added wall time, against the chain of two answers"
    return Figures(added, 2.0, added / 2.0, "s", "<= 1.2", what)


ROWS: dict[str, Callable[[Setting], Figures]] = {
    "decode_vs_generate": decode_vs_generate,
    "decode_vs_floor": decode_vs_floor,
    "samples_1_to_8": samples_1_to_8,
    "user_latency": user_latency,
}


# --- the table -------------------------------------------------------------------------------------------------------


def _task() -> Any:
    from collab.compose import load_config

    return load_config("train", ["experiment=doc_edit"]).task


def write(rows: Sequence[dict[str, Any]]) -> None:
    path = FOLDER / "results.json"
    older = json.loads(path.read_text())["rows"] if path.exists() else []
    merged = {row["row"]: row for row in [*older, *rows]}
    ordered = [merged[name] for name in ROWS if name in merged]
    path.write_text(json.dumps({"rows": ordered}, indent=1) + "\n")
    lines = [
        "# Benchmarks",
        "",
        "Ratios, each side measured in turn in one run; medians. `python benchmarks/run.py --write` repeats them.",
        "",
        "| what | ours | peer | ratio, ours / peer | wanted | machine |",
        "|---|---:|---:|---:|---:|---|",
        *(
            f"| {r['what']} | {r['ours']:.4g} {r['unit']} | {r['peer']:.4g} {r['unit']} | {r['ratio']:.2f} | "
            f"{r['wanted']} | {r['machine']} |"
            for r in ordered
        ),
    ]
    (FOLDER.parent / "docs" / "benchmarks.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help=f"rows to measure, of {', '.join(ROWS)}; all if none is named")
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each side")
    parser.add_argument("--requests", type=int, default=32, help="sequences decoded at a time")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each")
    parser.add_argument("--model", help="folder or Hugging Face id; SmolLM2-135M-Instruct if left out")
    parser.add_argument("--write", action="store_true", help="put the figures into benchmarks/results.json and docs/")
    args = parser.parse_args()
    if unknown := [name for name in args.rows if name not in ROWS]:
        parser.error(f"{', '.join(unknown)}: no such row. Rows: {', '.join(ROWS)}.")
    quiet()
    device = resolve_device("auto")
    dtype = resolve_dtype("auto", device)
    model = ModelConfig(name="smollm2", path=args.model)
    lm = load_model(model, dtype, device, adapter=False)
    setting = Setting(lm, load_tokenizer(model), args.runs, args.requests, args.tokens)
    place = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    machine = (
        f"{place}, {str(dtype).removeprefix('torch.')}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    measured = []
    for name in args.rows or ROWS:
        f = ROWS[name](setting)
        print(
            f"{name}: ours {f.ours:.4g}, peer {f.peer:.4g} {f.unit}, ratio {f.ratio:.2f} (wanted {f.wanted})",
            flush=True,
        )
        command = (
            f"python benchmarks/run.py {name} --runs {args.runs} --requests {args.requests} --tokens {args.tokens}"
        )
        measured.append({"row": name, **vars(f), "runs": args.runs, "command": command, "machine": machine})
    if args.write:
        write(measured)


if __name__ == "__main__":
    main()
