"""check-config: what is wrong in configuration files, and what holds for a VM."""

from __future__ import annotations

import argparse

from .. import config
from ..host import Host
from .command import Command


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("vm", nargs="?", default="", help="its name or uuid")


def _run(host: Host, arguments: argparse.Namespace) -> int:
    import yaml

    settings = config.load(host, arguments.vm, arguments.vm)
    plain = {key: _plain(value) for key, value in vars(settings).items()}
    print(yaml.safe_dump(plain, sort_keys=False, default_flow_style=None), end="")
    return 0


def _plain(value: object) -> object:
    """A value of the configuration as it is written in YAML."""
    if isinstance(value, config.Service):
        if not value.stop:
            return value.name
        return {
            key: words if key == "name" else " ".join(words) for key, words in vars(value).items()
        }
    if isinstance(value, config.Holders):
        return {key: _plain(one) for key, one in vars(value).items()}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


COMMAND = Command(
    "check-config",
    "read the configuration of a VM",
    "vfio-console-hook check-config",
    _options,
    _run,
)
