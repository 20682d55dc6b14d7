"""Talk to a policy in the terminal: you are the user.

torch and transformers are imported after the arguments have been checked, so `--help` and a typo answer at once.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from collab.chat.base import ChatModel, ContextFull, Sampling
from collab.conversation import Message
from collab.randomness import RngKey
from collab.util.errors import BadInput

if TYPE_CHECKING:
    from collab.config.schema import ModelConfig

USAGE = """Talk to a policy in the terminal.

  collab chat policy=outputs/RUN/policy
  collab chat policy=base temperature=0

Options (name=value):
  policy          folder that a run exported, Hugging Face folder or id, or base, the small model
  system_prompt   instruction of the assistant; default: that of the run of the policy, or none
  temperature     0.7; with 0 every token is the most likely one
  max_new_tokens  200; length limit of one reply, in tokens
  seed            1; the same seed and messages give the same replies

With --web the browser shows two policies side by side: `collab chat --web --help`.
In the conversation: /reset begins anew, /quit or Ctrl-D leaves."""
_COMMANDS = "/reset begins anew, /quit leaves."


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
        BadInput: An unknown name, a value of a wrong type or out of range, or no policy.
    """
    types = {"policy": str, "system_prompt": str, "temperature": float, "max_new_tokens": int, "seed": int}
    given: dict[str, Any] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or name not in types:
            raise BadInput(f"{argument!r} is no option here. Write name=value, with one of {', '.join(types)}.")
        try:
            given[name] = types[name](value)
        except ValueError:
            kind = "a whole number" if types[name] is int else "a number"
            raise BadInput(f"{argument!r}: {name} must be {kind}.") from None
    if not given.get("policy"):
        raise BadInput(
            "No policy was given. Set policy=base, or policy=FOLDER of an exported policy, or policy=HUB_ID."
        )
    options = ChatOptions(**given)
    # The hub's chat models are all OWNER/NAME, so it is not asked about other names.
    on_hub = "/" in options.policy and not options.policy.startswith(("/", ".", "~"))
    known = on_hub or options.policy in ("base", "smollm2")
    if not known and not Path(options.policy).expanduser().exists():
        raise BadInput(
            f"policy={options.policy!r}: there is no such folder. Set policy to a folder that a run exported, to a hub "
            "id (OWNER/NAME), or to base."
        )
    if not 0 <= options.temperature < float("inf"):
        raise BadInput(f"temperature ({options.temperature}) must be 0 or more. Set temperature=0.7, or 0 for greedy.")
    if options.max_new_tokens < 1:
        raise BadInput(f"max_new_tokens ({options.max_new_tokens}) must be at least 1. Set max_new_tokens=200.")
    return options


def run_system_prompt(policy: str) -> str:
    """`task.system_prompt` of the run that exported `policy`; empty if no run did."""
    config = Path(policy).expanduser().resolve().parent / ".hydra" / "config.yaml"
    if not config.is_file():
        return ""
    from omegaconf import OmegaConf

    from collab.config.register import register
    from collab.util.prompts import prompt_text

    register()  # the file may name one of the prompts that ship
    return prompt_text(OmegaConf.select(OmegaConf.load(config), "task.system_prompt") or "", "task.system_prompt")


def check_policy(policy: str) -> ModelConfig:
    """The model that a policy names; its weights are not read.

    Raises:
        BadInput: There is no such model, or it has no chat template.
    """
    from collab.config.schema import ModelConfig
    from collab.lm.checks import check_model

    model = ModelConfig(name=policy, path=None if policy in ("base", "smollm2") else policy)
    try:
        check_model(model)
    except BadInput as error:  # the messages name the field of a config
        raise BadInput(str(error).replace("model.path", "policy")) from None
    return model


def load_engine(policy: str, max_batch: int = 1) -> ChatModel:
    """The policy, ready to speak to `max_batch` people at a time.

    Raises:
        BadInput: As `check_policy`.
    """
    from collab.generation.engine import LocalEngine
    from collab.lm.device import resolve_device, resolve_dtype
    from collab.lm.loading import load_model, load_tokenizer
    from collab.util.quiet import quiet

    quiet()
    model = check_policy(policy)
    device = resolve_device("auto")
    lm = load_model(model, resolve_dtype("auto", device), device, adapter=False)
    return LocalEngine(lm, load_tokenizer(model), max_batch=max_batch)


def converse(engine: ChatModel, options: ChatOptions, console: Console) -> None:
    """Read messages and print replies until `/quit`, end of input or Ctrl-C."""
    sampling = Sampling(max_new_tokens=options.max_new_tokens, temperature=options.temperature)
    opening = [Message("system", options.system_prompt)] if options.system_prompt else []
    messages = list(opening)
    rounds = 0
    with asyncio.Runner() as runner:  # the loop does not run while waiting for input, so Ctrl-C works there
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
            if text.startswith("/") and len(text.split()) == 1:  # the policy would be asked what "/help" means
                console.print(f"[dim]There is no {escape(text)}. {_COMMANDS}[/]", highlight=False)
                continue
            prompt = [*messages, Message("user", text)]
            key = RngKey(options.seed, role="policy", split="chat", round=rounds, turn=len(prompt))
            try:
                with console.status("thinking"):
                    reply = runner.run(engine.complete(prompt, sampling, key))
            except (BadInput, ContextFull) as error:
                console.print(f"{error} Or type /reset to begin anew.", style="red", markup=False, highlight=False)
                continue
            messages = [*prompt, Message("assistant", reply.text, reply.token_ids or None)]
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
        console.print(f"Talking to {options.policy}; {_COMMANDS}", **plain)
        if options.system_prompt:
            console.print(f"system> {options.system_prompt}", **plain)
        converse(engine, options, console)
    except BadInput as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print()
    return 0
