"""Which profiles this machine can run: compatible, low memory or incompatible, with the reason and the GB needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from dsv4_backend.config.fields import nearest_name
from dsv4_nim.catalog import all_profiles, find_profiles
from dsv4_nim.errors import HardwareError, SettingError
from dsv4_nim.generate import needed_bytes
from dsv4_nim.machine import Machine
from dsv4_nim.profiles import GB, Goal, Profile, Weights

SHORTER_CONTEXTS = (524_288, 262_144, 131_072, 65_536, 32_768, 16_384, 8_192, 4_096)
# The runtime loads its model on the CPU, in one rank (ServingConfig refuses more); tests/nim hold this against it.
RUNTIME_GPUS = frozenset({"cpu"})
RUNTIME_RANKS = 1
_GOALS = (Goal.BALANCED, Goal.LATENCY, Goal.THROUGHPUT, Goal.LONG_CONTEXT, Goal.PREFILL, Goal.DECODE)
_WEIGHTS = (Weights.NVFP4, Weights.MXFP4, Weights.FP8, Weights.EXPANDED)


class Fit(str, Enum):
    """How a profile fits a machine, with the heading of its list."""

    COMPATIBLE = "Compatible with system and runnable"
    LOW_MEMORY = "Compatible with system but low memory"
    NOT_YET = "Compatible with system, not yet run by this version"
    INCOMPATIBLE = "Incompatible with system"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One profile on one machine. `reason` is empty for a compatible one."""

    profile: Profile
    fit: Fit
    reason: str = ""


def judge(profile: Profile, machine: Machine) -> Verdict:
    """Judge by kind and number of GPUs, then by memory, then by what the runtime can run."""
    reason = _wrong_hardware(profile, machine)
    if reason:
        return Verdict(profile=profile, fit=Fit.INCOMPATIBLE, reason=_and_gap(reason, profile))
    gap = runtime_gap(profile)
    there = available_bytes(profile, machine)
    if there >= profile.needed_bytes:
        return Verdict(profile=profile, fit=Fit.NOT_YET if gap else Fit.COMPATIBLE, reason=gap)
    reason = f"{there / GB:.0f} GB are there{_shorter(profile, there)}"
    return Verdict(profile=profile, fit=Fit.LOW_MEMORY, reason=_and_gap(reason, profile))


def runtime_gap(profile: Profile) -> str:
    """Say why this version cannot run a profile on any machine; empty when it can."""
    gaps = []
    if profile.mesh.num_ranks > RUNTIME_RANKS:
        gaps.append(f"a mesh of {profile.mesh.num_ranks} ranks (it runs {RUNTIME_RANKS})")
    if profile.gpu not in RUNTIME_GPUS:
        gaps.append("GPU kernels")
    if profile.goal in (Goal.PREFILL, Goal.DECODE):
        gaps.append(f"the role {profile.goal.value}")
    return f"this version lacks {', '.join(gaps)}" if gaps else ""


def available_bytes(profile: Profile, machine: Machine) -> int:
    """Free memory of the fullest of the GPUs that the profile would take, or the CPU's memory."""
    if profile.is_cpu:
        return machine.cpu_memory_bytes
    free = sorted((gpu.free_bytes for gpu in machine.gpus if gpu.kind == profile.gpu), reverse=True)
    return free[profile.num_gpus - 1] if len(free) >= profile.num_gpus else 0


def _wrong_hardware(profile: Profile, machine: Machine) -> str:
    num_there = sum(gpu.kind == profile.gpu for gpu in machine.gpus)
    if profile.is_cpu or num_there >= profile.num_gpus:
        return ""
    return f"needs {profile.num_gpus} x {profile.tags['gpu']}; this machine has {machine.describe()}"


def _and_gap(reason: str, profile: Profile) -> str:
    gap = runtime_gap(profile)
    return f"{reason}; {gap}" if gap else reason


def _shorter(profile: Profile, there: int) -> str:
    """A context that fits, as NIM says it."""
    for context in SHORTER_CONTEXTS:
        needed = needed_bytes(profile, context)
        if context < profile.context_tokens and needed <= there and not profile.is_cpu:
            return f", try --max-model-len={context} to reduce to >={-(-needed // GB)} GB/gpu"
    return ""


def judge_all(machine: Machine, profiles: Sequence[Profile] | None = None) -> list[Verdict]:
    """Judge every profile, or those given."""
    return [judge(profile, machine) for profile in (all_profiles() if profiles is None else profiles)]


def choose(machine: Machine, wanted: str = "", tags: str = "") -> Profile:
    """Return the profile to run: the one wanted, or the best of those that this machine can run.

    Rule:   GPUs before CPU, the fewest bytes per weight, the goal `balanced`, the most devices.
    Raises: SettingError for an id or a tag that no profile has; HardwareError when none of them can be run here.
    """
    candidates = select(wanted, tags)
    verdicts = judge_all(machine, candidates)
    runnable = [verdict.profile for verdict in verdicts if verdict.fit is Fit.COMPATIBLE]
    if runnable:
        return min(runnable, key=_preference)
    told = "\n".join(f"  - {verdict.profile.name}: {verdict.reason}" for verdict in verdicts[:5])
    more = f"\n  and {len(verdicts) - 5} more" if len(verdicts) > 5 else ""
    raise HardwareError(
        f"no wanted profile can be run on this machine ({machine.describe()}):\n{told}{more}\n"
        "Unset NIM_MODEL_PROFILE and NIM_TAGS_SELECTOR, or choose one that list-model-profiles shows as compatible."
    )


def select(wanted: str = "", tags: str = "") -> list[Profile]:
    """Return the profiles that an id or name and a tags selector leave. Raises: SettingError when that is none."""
    candidates = find_profiles(wanted) if wanted and wanted != "default" else list(all_profiles())
    if not candidates:
        names = [name for each in all_profiles() for name in (each.name, each.short_name)]
        raise SettingError(
            f"NIM_MODEL_PROFILE is {wanted!r} but no profile has that id or name{nearest_name(wanted.lower(), names)}."
            " list-model-profiles prints all ids and names."
        )
    for name, value in _read_tags(tags).items():
        left = [each for each in candidates if each.tags.get(name, "").lower() == value]
        if not left:
            there = sorted({each.tags[name] for each in candidates if name in each.tags})
            raise SettingError(
                f"NIM_TAGS_SELECTOR asks for {name}={value} but the profiles have"
                f" {', '.join(there) or 'no such tag'}. Set {name}={(there or ['…'])[0]}."
            )
        candidates = left
    return candidates


def _read_tags(text: str) -> dict[str, str]:
    tags = {}
    known = {name for profile in all_profiles() for name in profile.tags}
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not value:
            raise SettingError(f"NIM_TAGS_SELECTOR has {part!r} but needs name=value, such as precision=nvfp4,tp=8.")
        if name not in known:
            raise SettingError(f"NIM_TAGS_SELECTOR names the tag {name!r}{nearest_name(name, known)}.")
        tags[name] = value.lower()
    return tags


def _preference(profile: Profile) -> tuple[int, int, int, int]:
    return (
        int(profile.is_cpu),
        _WEIGHTS.index(profile.weights),
        _GOALS.index(profile.goal),
        -profile.num_gpus,
    )
