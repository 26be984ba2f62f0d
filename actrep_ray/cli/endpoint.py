"""Arguments about a model behind an API, of `actrep cot` and `actrep evaluate`."""

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar
from urllib.parse import urlsplit

from actrep_ray.cli.commands import UsageError
from data_prep.chat_settings import APIS, ChatSettings
from data_prep.loopback import is_loopback

SettingsT = TypeVar("SettingsT", bound=ChatSettings)


def add_endpoint_arguments(group: Any) -> None:
    """Add who is asked, and how fast: all that any command says of an endpoint."""
    group.add_argument("--base-url", metavar="URL", help="endpoint, up to /v1")
    group.add_argument("--model", metavar="NAME", help="as the endpoint knows it")
    group.add_argument(
        "--allow-network",
        action="store_true",
        help="let --base-url be on another machine: what is shown and asked is sent there",
    )
    group.add_argument(
        "--api",
        choices=APIS,
        default=ChatSettings.api,
        help="what the endpoint speaks: openai (chat completions; vLLM, clouds, Gemini too) or "
        "gemini (its own generateContent); default: %(default)s",
    )
    add = argument_adder(group, ChatSettings)
    add("api_key_env", str, "NAME", "name of the environment variable that holds the key")
    add("concurrency", int, "N", "requests under way at the same time")
    add("requests_per_minute", float, "X", "most requests in a minute")
    add("timeout_s", float, "S", "longest wait for an answer, seconds")
    add("max_retries", int, "N", "how often a request is sent again")
    add("extra_body", str, "JSON", "put over each request; null takes a key out")


def argument_adder(
    group: Any, settings: type[ChatSettings]
) -> Callable[[str, Callable[[str], Any], str, str], None]:
    """Adds an argument for a setting, with the setting's own default.

    Args:
        group: Gets it.
        settings: Whose defaults count.
    """

    def add(name: str, kind: Callable[[str], Any], metavar: str, text: str) -> None:
        default = getattr(settings, name)
        shown = "" if default is None else "; default: %(default)s"
        group.add_argument(
            f"--{name.replace('_', '-').removesuffix('-s')}",
            dest=name,
            type=kind,
            default=default,
            metavar=metavar,
            help=f"{text}{shown}",
        )

    return add


def endpoint_of(
    args: argparse.Namespace, kind: type[SettingsT], needed_by: str, **others: Any
) -> SettingsT:
    """The settings that the arguments give.

    Args:
        args: Holds them by their names.
        kind: Of settings.
        needed_by: The option that asks an endpoint.
        others: Settings that are no arguments, or are put over them.

    Raises:
        UsageError: if endpoint or model are missing, or it is on another machine unasked.
    """
    for name in ("base_url", "model"):
        if not getattr(args, name):
            raise UsageError(f"{needed_by} needs --{name.replace('_', '-')}")
    host = urlsplit(args.base_url).hostname
    if host and not is_loopback(host) and not args.allow_network:
        raise UsageError(
            f"--base-url: {host} is another machine, expected one of this machine or "
            "--allow-network, with which videos and questions are sent there"
        )
    given = {f.name: getattr(args, f.name) for f in fields(kind) if hasattr(args, f.name)}
    return kind(**{**given, **others})
