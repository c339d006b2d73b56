"""Arguments and output of the commands in /opt/nim/bin."""

from __future__ import annotations

import argparse
import http.client
import os
import ssl
import sys
from pathlib import Path

from dsv4_nim.cache import Cache, is_remote
from dsv4_nim.download import fetch
from dsv4_nim.errors import SettingError
from dsv4_nim.judge import Fit, Verdict, choose, judge_all, select
from dsv4_nim.machine import detect
from dsv4_nim.places import find_places
from dsv4_nim.profiles import Profile
from dsv4_nim.resolve import Inputs, Resolution, resolve
from dsv4_nim.serve import serve
from dsv4_nim.store import make_store

HEALTH_TIMEOUT_S = 5.0


def nim_serve(arguments: list[str]) -> int:
    """Serve; `--dry-run` only says what would be served."""
    return serve(arguments, os.environ)


def list_model_profiles(arguments: list[str]) -> int:
    """Print every profile under its heading, with the GB it needs and the reason against it."""
    parser = argparse.ArgumentParser(prog="list-model-profiles", description="Profiles and how they fit this machine.")
    parser.parse_args(arguments)
    machine = detect()
    sys.stdout.write(f"SYSTEM INFO\n- {machine.describe()}\n")
    for index, gpu in enumerate(machine.gpus):
        sys.stdout.write(
            f"  - ({index}) {gpu.name} [{gpu.free_bytes / 1e9:.0f} of {gpu.memory_bytes / 1e9:.0f} GB free]\n"
        )
    sys.stdout.write(render_verdicts(judge_all(machine)))
    return 0


def render_verdicts(verdicts: list[Verdict]) -> str:
    """Return the lists as NIM prints them."""
    lines = ["MODEL PROFILES"]
    for fit in Fit:
        rows = [verdict for verdict in verdicts if verdict.fit is fit]
        lines.append(f"- {fit.value}:{'' if rows else ' <None>'}")
        lines.extend(f"  - {_line(verdict)}" for verdict in rows)
    return "\n".join(lines) + "\n"


def _line(verdict: Verdict) -> str:
    profile = verdict.profile
    unit = "GB" if profile.is_cpu else "GB/gpu"
    reason = f"; {verdict.reason}" if verdict.reason else ""
    return f"{profile.id} ({profile.name}) [requires >={profile.needed_gb} {unit}{reason}]"


def download_to_cache(arguments: list[str]) -> int:
    """Fetch the models of profiles, or of a uri, into the cache, so that a later start needs no network and no key."""
    parser = argparse.ArgumentParser(prog="download-to-cache", description="Fetch models into NIM_CACHE_PATH.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--all", action="store_true", help="the models of every profile")
    what.add_argument(
        "-p", "--profile", "--profiles", nargs="+", default=[], metavar="ID", help="these profiles' models"
    )
    what.add_argument("--model-uri", metavar="URI", help="hf://org/name[@revision], s3://…, gs://…, or a folder")
    options = parser.parse_args(arguments)
    resolution = _settings()
    if resolution.switch("disable_download"):
        raise SettingError("NIM_DISABLE_MODEL_DOWNLOAD is 1, so nothing is fetched. Unset it for this command.")
    cache = Cache(Path(resolution.text("cache_path")))
    for uri in _uris(options, resolution):
        fetch(uri, cache, _say)
    return 0


def _uris(options: argparse.Namespace, resolution: Resolution) -> list[str]:
    if options.model_uri:
        return [options.model_uri if is_remote(options.model_uri) else _folder_uri(options.model_uri)]
    if options.all:
        profiles: list[Profile] = select()
    elif options.profile:
        profiles = [profile for name in options.profile for profile in select(name)]
    else:
        wanted = resolution.text("model_profile")
        profiles = [choose(detect(), wanted, resolution.text("tags_selector"))]
    uris = list(dict.fromkeys(profile.uri for profile in profiles if profile.uri))
    bundled = [uri for uri in uris if not is_remote(uri)]
    for uri in bundled:
        _say(f"{uri} is in the image; there is nothing to fetch")
    if not uris:
        raise SettingError("nobody publishes the weights of these profiles. Name their place with --model-uri.")
    return [uri for uri in uris if uri not in bundled]


def _folder_uri(text: str) -> str:
    folder = Path(text.removeprefix("file://")).expanduser().resolve()
    if not (folder / "config.json").is_file():
        raise SettingError(f"--model-uri is {text} but there is no config.json. Name a folder with a checkpoint.")
    return f"file://{folder}"


def create_model_store(arguments: list[str]) -> int:
    """Write a checked copy of a profile's model, which NIM_MODEL_PATH can name."""
    parser = argparse.ArgumentParser(prog="create-model-store", description="Write a checked copy of a model.")
    parser.add_argument("-p", "--profile", required=True, metavar="ID", help="id or name of the profile")
    parser.add_argument("-m", "--model-store", required=True, type=Path, metavar="PATH", help="folder to make")
    options = parser.parse_args(arguments)
    (profile, *_) = select(options.profile)
    cache = Cache(Path(_settings().text("cache_path")))
    make_store(profile, cache, find_places(), options.model_store, _say)
    return 0


def nim_healthcheck(arguments: list[str]) -> int:
    """Return 0 when /v1/health/ready answers 200, else 1 with what it said."""
    parser = argparse.ArgumentParser(prog="nim-healthcheck", description="Ask whether requests can be sent.")
    parser.add_argument("--live", action="store_true", help="only whether the container lives")
    options = parser.parse_args(arguments)
    resolution = _settings()
    port = resolution.integer("health_port") or resolution.port("server_port")
    is_tls = resolution.text("ssl_mode") != "DISABLED" and resolution.integer("health_port") is None
    connection = _connection(port, is_tls=is_tls)
    try:
        connection.request("GET", f"/v1/health/{'live' if options.live else 'ready'}")
        answer = connection.getresponse()
        body = answer.read().decode("utf-8", "replace")
    except OSError as error:
        sys.stderr.write(f"nim-healthcheck: nobody answers on port {port}: {error}\n")
        return 1
    finally:
        connection.close()
    sys.stdout.write(body + "\n")
    return 0 if answer.status == 200 else 1


def _connection(port: int, *, is_tls: bool) -> http.client.HTTPConnection:
    if not is_tls:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=HEALTH_TIMEOUT_S)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it asks itself, over loopback
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=HEALTH_TIMEOUT_S, context=context)


def _settings() -> Resolution:
    return resolve(Inputs(environment=os.environ))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
