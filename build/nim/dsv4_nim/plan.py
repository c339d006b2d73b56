"""From the resolved settings to what is served: profile, model folder, settings of the engine. Nothing is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dsv4_backend.config import CacheFormat, ServingConfig, load_model_config, parse_serving_config
from dsv4_backend.config.model import PAGE_TOKENS
from dsv4_backend.errors import ConfigError
from dsv4_backend.plan.deepseek_v4 import model_cost
from dsv4_backend.plan.formats import HcaState
from dsv4_nim.cache import Cache, is_remote
from dsv4_nim.errors import SettingError
from dsv4_nim.judge import RUNTIME_RANKS, Fit, Verdict, choose, judge, select
from dsv4_nim.machine import Machine
from dsv4_nim.places import FILE_SCHEME, Places
from dsv4_nim.profiles import Profile
from dsv4_nim.resolve import RUNTIME_CONFIG, Inputs, Resolution, Source, resolve
from dsv4_nim.settings import ENGINE_KEYS, Value

CPU_BYTES = 4  # the CPU runtime keeps weights in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class ServePlan:
    """What would be served. `model` is a uri that has to be fetched, or empty when `folder` is there already."""

    resolution: Resolution
    verdict: Verdict
    model: str
    folder: Path
    cache: Cache

    @property
    def profile(self) -> Profile:
        """The chosen profile."""
        return self.verdict.profile

    @property
    def served_name(self) -> str:
        """The name that clients use."""
        return self.resolution.text("served_model_name") or self.profile.model

    def engine_settings(self, machine: Machine) -> dict[str, str]:
        """Return the settings that go to the runtime as text, checked.

        Raises: SettingError where the engine refuses one.
        """
        given = self.resolution.given
        settings = {
            key: _text(given[key].value)
            for key in sorted(ENGINE_KEYS & given.keys())
            if given[key].source is not Source.DEFAULT and given[key].value is not None
        }
        settings["checkpoint"] = str(self.folder)
        share = self.resolution.number("kvcache_percent")
        if share is not None and "cache_tokens" not in settings:
            settings["cache_tokens"] = str(cache_tokens(self.folder, self.profile, share, machine))
        self._check(settings)
        return settings

    def _check(self, settings: Mapping[str, str]) -> ServingConfig:
        try:
            return parse_serving_config(settings)
        except ConfigError as error:
            raise SettingError(str(error)) from error


def make_plan(
    arguments: list[str], environment: Mapping[str, str], machine: Machine, places: Places, *, is_dry: bool = False
) -> ServePlan:
    """Resolve everything. Rule: a dry run also takes a profile that this machine cannot run, and says so.

    Raises: SettingError; HardwareError when no profile can be run here.
    """
    first = resolve(Inputs(arguments=arguments, environment=environment))
    verdict = _verdict(first, machine, is_dry=is_dry)
    profile = verdict.profile
    cache = Cache(Path(first.text("cache_path")))
    model, folder = _model(first, profile, cache, places)
    inputs = Inputs(
        arguments=arguments,
        environment=environment,
        runtime_config=folder / RUNTIME_CONFIG,
        profile=profile_values(profile),
    )
    resolution = resolve(inputs)
    if profile.mesh.num_ranks <= RUNTIME_RANKS:
        _check_ranks(resolution)
    return ServePlan(resolution=resolution, verdict=verdict, model=model, folder=folder, cache=cache)


def profile_values(profile: Profile) -> dict[str, Value]:
    """Return the settings that a profile gives."""
    return {
        "context_tokens": profile.context_tokens,
        "max_sequences": profile.max_sequences,
        "tensor_parallel_size": profile.mesh.tp,
        "pipeline_parallel_size": 1,
    }


def cache_tokens(folder: Path, profile: Profile, share: float, machine: Machine) -> int:
    """Return how many tokens fit into a share of the memory beside the weights, in whole pages.

    Raises: SettingError when not even a page does.
    """
    cost = model_cost(profile.model, load_model_config(folder), CacheFormat.FP32, HcaState.ONLINE)
    weights = sum(group.num_parameters for group in cost.weights) * CPU_BYTES
    fixed = profile.max_sequences * cost.fixed_bytes
    free = machine.cpu_memory_bytes * share - weights - fixed
    tokens = int(free / cost.marginal_bytes) // PAGE_TOKENS * PAGE_TOKENS
    if tokens < PAGE_TOKENS:
        least = (weights + fixed) / machine.cpu_memory_bytes
        raise SettingError(
            f"NIM_KVCACHE_PERCENT is {share:g} but weights and sequences alone take {least:.3g} of the memory."
            f" Set NIM_KVCACHE_PERCENT={min(0.9, 2 * least):.2g}, or fewer --max-sequences."
        )
    return tokens


def _verdict(first: Resolution, machine: Machine, *, is_dry: bool) -> Verdict:
    wanted, tags = first.text("model_profile"), first.text("tags_selector")
    if is_dry and (wanted or tags):
        candidates = [judge(profile, machine) for profile in select(wanted, tags)]
        return next((each for each in candidates if each.fit is Fit.COMPATIBLE), candidates[0])
    return judge(choose(machine, wanted, tags), machine)


def _model(first: Resolution, profile: Profile, cache: Cache, places: Places) -> tuple[str, Path]:
    """Return what has to be fetched, if anything, and the folder where the model is or will be."""
    given = first.text("model_path")
    path = given or profile.uri
    if not path:
        raise SettingError(
            f"nobody publishes the weights of {profile.name}. Set NIM_MODEL_PATH to a folder, hf://, s3:// or gs://."
        )
    if is_remote(path):
        folder = cache.folder(path)
        return ("" if cache.is_complete(path) else path), folder
    if not given:
        return "", places.bundled(path)
    folder = Path(path.removeprefix(FILE_SCHEME)).expanduser()
    if not (folder / "config.json").is_file():
        raise SettingError(f"NIM_MODEL_PATH is {path} but there is no config.json. Name a folder with a checkpoint.")
    return "", folder.resolve()


def _check_ranks(resolution: Resolution) -> None:
    """Refuse more ranks than the runtime has, whoever asked for them."""
    for key, name in (
        ("tensor_parallel_size", "NIM_TENSOR_PARALLEL_SIZE"),
        ("pipeline_parallel_size", "NIM_PIPELINE_PARALLEL_SIZE"),
        ("num_compute_nodes", "NIM_NUM_COMPUTE_NODES"),
    ):
        value = resolution.integer(key)
        if value is not None and value > RUNTIME_RANKS:
            raise SettingError(f"{name} is {value} but this version runs a mesh of {RUNTIME_RANKS}. Set {name}=1.")


def _text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
