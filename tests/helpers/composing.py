"""`load_config` of `collab.app.compose`, faster: Hydra composes each choice of options once in a process.

Fields are set on copies of that, the way that Hydra sets them. All programs compose the same.
`tests/unit/test_config.py` holds both against the real function.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from collab.app import compose
from collab.config.register import register
from collab.config.schema import Config
from collab.util.errors import BadInput
from collab.util.paths import config_dir


def load_config(entry: str, overrides: Sequence[str] = (), output_dir: str = "") -> Config:
    """As `collab.app.compose.load_config`, which says what is wrong where something is."""
    try:
        parsed = _parse(tuple(overrides))
        options = tuple(text for text, one in zip(overrides, parsed, strict=True) if not _sets_a_field(one))
        config = copy.deepcopy(_composed(options))
        for one in filter(_sets_a_field, parsed):
            OmegaConf.update(config, one.key_or_group, one.value(), merge=True)
        return compose.typed(config, output_dir)
    except (BadInput, OmegaConfBaseException):
        return compose.load_config(entry, overrides, output_dir)


@functools.cache
def _parse(overrides: tuple[str, ...]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except Exception as error:
        raise BadInput(str(error)) from error


@functools.cache
def _groups() -> frozenset[str]:
    return frozenset(compose.options([config_dir()]))


def _sets_a_field(override: Override) -> bool:
    """Whether it gives a field that is there another value: no option of a group, nothing added or taken away."""
    key = override.key_or_group
    return (
        override.type is OverrideType.CHANGE
        and override.package is None
        and key not in _groups()
        and not key.startswith(("hydra", "task.metrics"))  # whether metrics are read is for Hydra's composing to say
        and not override.is_sweep_override()
    )


@functools.cache
def _composed(options: tuple[str, ...]) -> DictConfig:
    register()
    folder = config_dir()
    with hydra.initialize_config_dir(str(folder), job_name="train", version_base=None):
        return compose.compose("train", list(options), [folder])
