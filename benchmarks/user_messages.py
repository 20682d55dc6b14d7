"""What local weights say as `user=llm`: every raw answer of a run, also those that a guard refuses.

    python benchmarks/user_messages.py --model FOLDER_OR_ID --to FILE.jsonl     # 4 conversations about each of 6 goals

The goals are training goals of `doc_edit`, and the assistant says again what it says in `data/demonstrated.jsonl`. The
conversations go on as in a run: an answer that the guards of the time refuse is asked for again, and what passes is
said. All conversations about a goal have the same prompt, so the model reads it once. FILE gets a
line for each answer as soon as it is there: `conversation`, `goal`, `turn`, `heard` (the assistant's last message),
`said` (the user's messages so far), `raw`, and `refused`, the guard that refused it. The model is asked for the
next line of a transcript. With `--json` it is asked for JSON, and with `--free` it is not held to the schema either, as
at a server that knows none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of `python benchmarks/user_messages.py`

from benchmarks.users import sides
from collab.app.report_sources import Says, heard_out
from collab.chat.base import Sampling
from collab.chat.structured import Unfit
from collab.config.schema import LLMUserConfig
from collab.conversation import Conversation, Goal, Message
from collab.randomness import RngKey
from collab.simulation.conversation_loop import Players, play
from collab.simulation.llm import LLMUser
from collab.simulation.user import UserTurn, draw_persona


class Recorded(LLMUser):
    """The user as it ships, which hands each raw answer to `keep`."""

    keep: Any
    free = False

    def schema(self, conversation: Conversation) -> str:
        return "" if self.free else super().schema(conversation)

    def messages(self, conversation: Conversation, key: RngKey, persona: str) -> list[Message]:
        return super().messages(conversation, key.at(sample=0), persona)  # one prompt for all samples of a goal

    def read(self, conversation: Conversation, text: str) -> UserTurn:
        problem = ""
        try:
            return super().read(conversation, text)
        except Unfit as unfit:
            problem = unfit.kind
            raise
        finally:
            self.keep(conversation, text, problem)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of the user")
    parser.add_argument("--to", required=True, type=Path, help="lines are added to this file")
    parser.add_argument("--goals", type=int, default=6)
    parser.add_argument("--samples", type=int, default=4, help="conversations about each goal")
    parser.add_argument("--skip", type=int, default=0, help="goals to leave out before the first")
    parser.add_argument("--json", action="store_true", help="ask for JSON, as a server is asked")
    parser.add_argument("--free", action="store_true", help="ask for JSON, and do not hold the model to the schema")
    args = parser.parse_args()

    from collab.app import build
    from collab.app.compose import load_config
    from collab.callbacks.progress import Progress

    form = "json" if args.json or args.free else "transcript"
    local = ["user=local", f"user.form={form}", f"user.endpoint.model={args.model}"]
    config = load_config("evaluate", ["experiment=doc_edit", *local])
    setting = config.user
    assert isinstance(setting, LLMUserConfig)
    name = f"{Path(args.model).name}{'-free' if args.free else ''}"
    began = time.perf_counter()

    with Progress(animate=False) as progress, build.endpoints(config, progress) as endpoints, args.to.open("a") as file:
        user = Recorded(setting, 4, build.chat_model(config, setting.endpoint, endpoints))
        user.free = args.free

        def keep(conversation: Conversation, text: str, problem: str) -> None:
            said, heard = [turn.user for turn in conversation.turns], conversation.assistant_texts
            row = {
                "model": name,
                "persona": conversation.user,
                "goal": conversation.goal.id,
                "turn": conversation.turn,
                "heard": heard[-1] if heard else "",
                "said": said,
                "raw": text,
                "refused": problem,
                "seconds": round(time.perf_counter() - began),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()

        user.keep = keep

        async def one(goal: Goal, replies: list[str], sample: int) -> Conversation:
            players = Players(Says(replies), user, Sampling(1), len(replies), lambda: None)
            key = RngKey(config.seed, split="messages", goal=goal.id)
            begun = Conversation(goal, config.task.system_prompt, user=draw_persona(setting.personas, key))
            key = key.at(sample=sample)
            done = await play(players, begun, key)
            return await heard_out(user, done, key) if done.ended_by == "max_turns" else done

        async def everyone() -> list[Conversation]:
            chosen = sides(10**6)[args.skip :][: args.goals]
            return list(await asyncio.gather(*(one(*each, n) for each in chosen for n in range(args.samples))))

        played = asyncio.run(everyone())
    invalid = sum(talk.ended_by.startswith("invalid") for talk in played)
    print(f"{name}: {len(played)} conversations, {invalid} invalid, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
