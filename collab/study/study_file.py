"""The study file: a YAML file that says which assistants are compared, and what participants read, do and rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from collab.config.endpoints import price_problems
from collab.config.fields import number, range_problems
from collab.config.schema import BudgetConfig, EndpointConfig
from collab.util.errors import BadInput, error_text
from collab.util.paths import config_dir
from collab.util.text import is_blank

LONGEST_ARM, LONGEST_DOCUMENT = 100, 200  # characters of a name
_CHANGEABLE = ("title", "consent", "completion_code", "contact", "budget")  # no answer depends on them
_CHANGEABLE_OF_SERVERS = ("base_url", "key_env", "connect_timeout", "read_timeout", "max_concurrency")  # a server moves


@dataclass
class ArmConfig:
    """One of the assistants that are compared: a policy that this process loads, or a server's model."""

    policy: str | None = None  # as in `collab chat`: folder that a run exported, Hugging Face folder or id, or base
    # a server instead of a policy; a person waits for the reply, so it has less time than in training
    endpoint: EndpointConfig = field(default_factory=lambda: EndpointConfig(read_timeout=60))
    system_prompt: str | None = None  # null: of a policy that of the run which exported it, of a server none
    temperature: float = number(0.7, at_least=0)  # softmax temperature; 0 is greedy
    max_new_tokens: int = number(500, at_least=1)  # maximum tokens of one reply


@dataclass
class StudyConfig:
    """A study file. Participants see neither the names nor the settings of `arms`."""

    title: str = MISSING  # what participants read at the top of each page
    consent: str = MISSING  # what participants read before they agree; an empty line begins a paragraph
    arms: dict[str, ArmConfig] = field(default_factory=dict)  # name -> assistant; the first is the baseline
    documents: list[str] = field(default_factory=list)  # document types; each participant writes one of them
    completion_code: str = MISSING  # what participants give Prolific or MTurk at the end
    contact: str = ""  # whom participants can ask, on each page
    min_turns: int = number(8, at_least=1)  # turns after which a participant may finish
    max_turns: int = number(30, at_least=1)  # turns after which the conversation ends
    rate_every: int = number(3, at_least=1)  # turns after which the interaction is rated, again and again
    max_minutes: float = number(60.0, above=0)  # time limit of the conversation
    seed: int = 1  # of ties in the assignment and of replies
    # what the arms with an endpoint may cost together; the prices of conf/budget/default.yaml are known
    budget: BudgetConfig = field(default_factory=BudgetConfig)


def read_study(path: Path) -> StudyConfig:
    """The study of a file.

    Raises:
        BadInput: There is no such file, it is not YAML, or fields are unknown, missing or wrong. Names all problems.
    """
    if not path.is_file():
        raise BadInput(f"There is no study file {path}. Name a YAML file; docs/study.md has a whole one.")
    try:
        given = OmegaConf.load(path)
        prices = {"budget": OmegaConf.load(config_dir() / "budget" / "default.yaml")}
        study = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(StudyConfig), prices, given))
    except (OmegaConfBaseException, ValueError, TypeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error_text(error)} Fields: {', '.join(StudyConfig.__dataclass_fields__)}.") from None
    except Exception as error:  # PyYAML's errors have no common base that OmegaConf exports
        raise BadInput(f"{path} is not YAML: {error_text(error)} Correct it.") from None
    assert isinstance(study, StudyConfig)
    if problems := [*range_problems(study), *_problems(study)]:
        raise BadInput(f"{path}: " + "\n".join(problems))
    return study


def _problems(study: StudyConfig) -> Iterator[str]:
    for name in ("title", "consent", "completion_code"):
        if is_blank(getattr(study, name)):
            yield f"{name} is empty. Participants have to read it: write it."
    if not study.arms:
        yield "arms is empty: there is no assistant. Name one at least, as in arms: {base: {policy: base}}."
    for name, arm in study.arms.items():
        if is_blank(name) or len(name) > LONGEST_ARM:
            yield f"arms.{name}: a name has 1 to {LONGEST_ARM} characters, and this one has {len(name)}. Change it."
        if (arm.policy is None) == (not arm.endpoint.base_url):
            yield (
                f"arms.{name} must have either a policy or an endpoint. Set arms.{name}.policy to a folder, a hub id "
                f"or base, or arms.{name}.endpoint.base_url to the address of a server."
            )
        elif arm.policy and arm.policy.startswith(("/", ".", "~")) and not Path(arm.policy).expanduser().exists():
            yield f"arms.{name}.policy ({arm.policy}): there is no such folder. Name one that a run exported."
    yield from price_problems(study.budget)
    if not study.documents or any(map(is_blank, study.documents)):
        yield "documents must list at least one document type, none of them empty, as in [blog post, short story]."
    for document in study.documents:
        if len(document) > LONGEST_DOCUMENT:
            yield f"documents ({document}): a type has at most {LONGEST_DOCUMENT} characters. Shorten it."
    if len(set(study.documents)) < len(study.documents):
        yield f"documents ({', '.join(study.documents)}) has one twice. Remove it."
    if study.max_turns < study.min_turns:
        yield (
            f"max_turns ({study.max_turns}) must be at least min_turns ({study.min_turns}), or nobody may finish. "
            "Raise max_turns."
        )


def fixed_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of a study's settings (`asdict`) that must not change while it runs, since its answers depend on them."""

    def fixed(arm: dict[str, Any]) -> dict[str, Any]:
        endpoint = {name: value for name, value in arm["endpoint"].items() if name not in _CHANGEABLE_OF_SERVERS}
        return arm | {"endpoint": endpoint}

    arms = {name: fixed(arm) for name, arm in settings["arms"].items()}
    return {name: value for name, value in settings.items() if name not in _CHANGEABLE} | {"arms": arms}
