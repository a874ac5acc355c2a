"""Paths of a configuration made absolute, once, where the user's working folder is known.

The workers of a cluster that was joined stand in another folder than the driver: a relative path would name something else
to each of them. URIs name the same thing everywhere and stay as they are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

from clear_ray.config.engine import ModelConfig, WorkersConfig
from clear_ray.config.estimate import NAMED_HEADS, EstimateConfig
from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError
from clear_ray.storage import Folder, is_plain_path

_COPY_OF_A_JOB = "/runtime_resources/working_dir_files/"
_EMBEDDED_MODEL = "smollm2-135m-instruct"
_PATHS = (
    "input.path",
    "input.retry_of",
    "engine.model",
    "engine.rollouts",
    "engine.features",
    "engine.key_file",
    "estimate.head",
    "estimate.encoder",
    "estimate.store",
)
_PATH_SETTINGS = frozenset(f"config.{name}" for name in _PATHS)
_OF_SEVERAL = (re.compile(r"config\.engines\..+\.(?=\w+$)"), re.compile(r"config\.estimate\.heads\..+"))


def is_path_setting(name: str) -> bool:
    """Return whether a setting holds a path, by the name that `run_folder.check_same_run` has for it."""
    engines, heads = _OF_SEVERAL
    return engines.sub("config.engine.", heads.sub("config.estimate.head", name)) in _PATH_SETTINGS


Engine = TypeVar("Engine", bound=WorkersConfig)


def absolute(location: str) -> str:
    """Return a path as an absolute one; a URI, or what can be no path, as it is."""
    if not location or not is_plain_path(location):
        return location
    try:
        return str(Path(location).expanduser().absolute())
    except RuntimeError:  # a home folder that is not known, which whatever opens it refuses by name
        return location


def refuse_passing(folder: Folder, setting: str) -> None:
    """Refuse a folder that would go with the job that writes it: a relative path leads a job there.

    `ray job submit --working-dir` has a job stand in a copy of that folder, which Ray makes for it and takes away again.

    Args:
        folder: Where something is to be kept.
        setting: The setting or option that names it.

    Raises:
        ConfigError: It lies in such a copy.
    """
    if folder.is_local and _COPY_OF_A_JOB in folder.path:
        what = "this folder lies in the copy of a working folder that Ray made for the job, and would go with it"
        remedy = "Name one that stays and that every node sees, by an absolute path or a URI."
        raise ConfigError(what, setting, folder.path, remedy)


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Return the settings of a run with every path absolute: the run folder, input, engine and head."""
    given: dict[str, Any] = {"run_dir": absolute(config.run_dir)}
    paths = {name: absolute(path) for name in ("path", "retry_of") if (path := getattr(config.input, name))}
    if paths:
        given["input"] = config.input.model_copy(update=paths)
    given["engine"] = absolute_engine(config.engine)
    if config.engines is not None:
        given["engines"] = {name: absolute_engine(engine) for name, engine in config.engines.items()}
    given["estimate"] = absolute_estimate(config.estimate)
    return config.model_copy(update=given)


def absolute_engine(engine: Engine) -> Engine:
    """Return the settings of an engine with the model's or the recordings' paths absolute; a hub name is no path."""
    given: dict[str, Any] = {}
    if isinstance(engine, ModelConfig):
        if engine.model.lower() != _EMBEDDED_MODEL and _is_folder(engine.model):
            given = {"model": absolute(engine.model)}
    else:
        names = ("rollouts", "features", "key_file")
        given = {name: absolute(value) for name in names if (value := getattr(engine, name, None)) is not None}
    return engine.model_copy(update=given)


def absolute_estimate(estimate: EstimateConfig) -> EstimateConfig:
    """Return the settings of an estimate with the head's path absolute; some names are no path."""
    given: dict[str, Any] = {}
    if estimate.head is not None:
        given["head"] = _absolute_head(estimate.head)
    given["heads"] = {name: _absolute_head(head) for name, head in estimate.heads.items()}
    if estimate.encoder is not None and _is_folder(estimate.encoder):
        given["encoder"] = absolute(estimate.encoder)
    if estimate.store is not None:
        given["store"] = absolute(estimate.store)
    return estimate.model_copy(update=given)


def _absolute_head(head: str) -> str:
    return head if head in NAMED_HEADS else absolute(head)


def _is_folder(name: str) -> bool:
    try:
        return is_plain_path(name) and Path(name).expanduser().is_dir()
    except (RuntimeError, ValueError, OSError):  # no home folder, NUL, a name too long: refused where it is opened
        return False
