"""The servers that a run speaks to: which there are, and what is wrong with their settings and the budget."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any
from urllib.parse import urlsplit

from collab.config.fields import nodes
from collab.config.policies import HostedPolicy, named_policies
from collab.config.schema import BudgetConfig, Config, EndpointConfig, ServerConfig, UserConfig, VLLMEngineConfig

# Fields of an endpoint that say where a model is asked and how often; a reply does not depend on them.
CONNECTION_FIELDS = (
    *("base_url", "key_env", "max_concurrency", "requests_per_minute", "tokens_per_minute"),
    *("connect_timeout", "read_timeout", "max_retries", "give_up_after"),
)


def hosted(config: Config, entry: str) -> dict[str, EndpointConfig]:
    """Every server that a run speaks to: dotted key, or row of the evaluation, -> its endpoint."""
    endpoints = endpoints_in(config)
    if entry == "evaluate":
        for name, policy in named_policies(config.policies).items():
            if isinstance(policy, HostedPolicy):
                endpoints[f"policies: {name}"] = policy_endpoint(config, policy)
    return {key: endpoint for key, endpoint in endpoints.items() if endpoint.kind == "http"}


def endpoints_in(config: Config) -> dict[str, EndpointConfig]:
    """Dotted key -> where a user, a judge, the extractor, the evaluator or the teacher speaks from."""
    left_out = {"evaluation.endpoint"} if has_teacher(config) else {"evaluation.endpoint", "teacher"}
    return {key: node for key, node in nodes(config) if isinstance(node, EndpointConfig) and key not in left_out}


def has_teacher(config: Config) -> bool:
    """Whether a server plays the assistant of a synthesis."""
    return bool(config.teacher.base_url)


def reads_model(config: Config) -> bool:
    """Whether the run reads the files of `model`: with a teacher only for a local user or judge that shares them."""
    shared = (each.kind == "local" and each.model is None for each in endpoints_in(config).values())
    return not has_teacher(config) or any(shared)


def users(config: Config) -> dict[str, UserConfig]:
    """Dotted key -> user: the config's, those of `evaluation.users`, and the parts of mixtures."""
    named = {"user": config.user, **{f"evaluation.users.{n}": user for n, user in config.evaluation.users.items()}}
    parts = {f"{key}.users.{n}": part for key, user in named.items() for n, part in getattr(user, "users", {}).items()}
    return named | parts


def engine_endpoints(engine: VLLMEngineConfig) -> list[EndpointConfig]:
    """The servers of an engine, for the HTTP client: one, or a replica for each address of a list."""
    server = {field.name: getattr(engine, field.name) for field in fields(ServerConfig)}
    urls = engine.base_url if isinstance(engine.base_url, list) else [engine.base_url]
    return [EndpointConfig(**server | {"base_url": url}, max_concurrency=engine.max_batch) for url in urls]


def policy_endpoint(config: Config, policy: HostedPolicy) -> EndpointConfig:
    """Where a row of the table speaks from."""
    return replace(config.evaluation.endpoint, base_url=policy.base_url, model=policy.model)


def endpoint_problems(config: Config, entry: str) -> Iterator[str]:
    """What is wrong with addresses and names of keys. A value that could be a key is not repeated."""
    engine = engine_endpoints(config.engine) if isinstance(config.engine, VLLMEngineConfig) else []
    if problem := _list_problem(config.engine, engine):
        yield problem
        engine = []
    for key, endpoint in (*hosted(config, entry).items(), *(("engine", endpoint) for endpoint in engine)):
        place = "evaluation.endpoint" if key.startswith("policies") else key
        url = urlsplit(endpoint.base_url)
        if url.username or url.password or url.query or url.fragment:
            yield (
                f"{key}: the base_url has a user, a password or a query, which would be written to logs. Write the "
                f"address alone; a key comes from the environment variable that {place}.key_env names."
            )
        elif url.scheme not in ("http", "https") or not url.hostname:
            option = "" if endpoint.base_url or key == "engine" else f", or take an option: endpoint@{key}=openai"
            yield (
                f"{key}: the base_url ({endpoint.base_url}) must be the address of a server, as in "
                f"http://127.0.0.1:8000/v1. Set {key}.base_url to what comes before "
                f"{'/completions' if key == 'engine' else '/chat/completions'}{option}."
            )
        if endpoint.key_env is not None and not _names_a_variable(endpoint.key_env):
            yield (
                f"{place}.key_env must be the NAME of an environment variable in capitals. Its value is not shown "
                "here, since it may be the key. Put the key into a variable, and set key_env to its name."
            )


def _list_problem(engine: Any, endpoints: list[EndpointConfig]) -> str:
    """What is wrong with the addresses of an engine as a list; each is checked as an address later."""
    example = "as in 'engine.base_url=[http://127.0.0.1:8000/v1,http://127.0.0.1:8001/v1]'"
    if isinstance(engine, VLLMEngineConfig) and not endpoints:
        return f"engine.base_url is an empty list, and a vLLM server has to decode. Name one or several, {example}."
    seen: set[str] = set()
    for number, endpoint in enumerate(endpoints, 1):
        url = endpoint.base_url
        if not isinstance(url, str) or re.search(r"[,\s]", url):  # not shown, since it may have a password
            return (
                f"engine.base_url: number {number} of {len(endpoints)} is not the address of one server. Set it to an "
                f"address, or to a list of addresses, {example}."
            )
        if url.rstrip("/") in seen:
            return (
                f"engine.base_url: number {number} of {len(endpoints)} is there already, and each server is named "
                "once. Leave it out of the list."
            )
        seen.add(url.rstrip("/"))
    return ""


def price_problems(budget: BudgetConfig) -> Iterator[str]:
    """What is wrong with prices."""
    for model, price in budget.prices.items():
        two = isinstance(price, list) and len(price) == 2
        if not two or not all(isinstance(usd, int | float) and math.isfinite(usd) and usd >= 0 for usd in price):
            yield (
                f"budget.prices.{model} ({price}) must be two numbers of at least 0, US dollars per million tokens of "
                "prompts and of replies."
            )


def budget_problems(config: Config, entry: str) -> Iterator[str]:
    """What is wrong with prices, and which prices a cap needs."""
    yield from price_problems(config.budget)
    if config.budget.max_usd is None:
        return
    for key, endpoint in hosted(config, entry).items():
        if (endpoint.model or "") not in config.budget.prices:
            yield (
                f"{key}: budget.max_usd is set, and budget.prices has no price for "
                f"{endpoint.model or 'a model without a name'}. Add it in dollars per million tokens, "
                f"'+budget.prices={{{endpoint.model or 'MODEL'}:[0.15,0.6]}}', or as [0,0] if it costs nothing."
                + ("" if endpoint.model else f" Name the model too, in {key}.model.")
            )


def _names_a_variable(text: str) -> bool:
    """Whether this can be shown as the name of a variable; most keys are words of a program too."""
    return text in os.environ or re.fullmatch(r"[A-Z_][A-Z0-9_]{0,39}", text) is not None
