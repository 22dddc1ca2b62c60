"""Find the cluster: a kubeconfig file's context, or the pod that we run in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kboot.errors import ConfigError
from kboot.kube.client import Client

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def connect(context: str | None = None, namespace: str | None = None) -> Client:
    """A client for the cluster that the kubeconfig file, or the pod we run in, names.

    `context` of None is the file's current one, and `namespace` of None the context's own, or
    ``default``. Proxy and certificates are those of the kubeconfig, never of the environment.
    `ConfigError` if there is none. Nothing is sent to the cluster yet.
    """

    def load() -> tuple[Any, str]:
        configuration = _blank()
        if context is None and not _has_kubeconfig() and _ACCOUNT.is_dir():
            return configuration, _from_pod(configuration)
        return configuration, _from_file(configuration, context)

    return Client(load, namespace=namespace)


def _blank() -> Any:
    from kubernetes import client  # noqa: PLC0415  half a second

    configuration = client.Configuration()
    # It has taken these from the environment by now, where they are meant for the Internet.
    configuration.proxy = None
    configuration.no_proxy = None
    return configuration


def _from_file(configuration: Any, context: str | None) -> str:
    from yaml import YAMLError  # noqa: PLC0415

    config = _library()
    # Named, as the library asks the environment only once in its life.
    path = os.environ.get("KUBECONFIG") or str(_default_file())
    try:
        config.load_kube_config(path, context=context, client_configuration=configuration)
        contexts, current = config.list_kube_config_contexts(path)
    except (config.ConfigException, YAMLError, OSError, ValueError, TypeError) as error:
        which = f"context {context}" if context else "the current context"
        raise ConfigError(
            f"no cluster: {which} of the kubeconfig cannot be used: {error}; "
            "see kubectl config get-contexts, and set KUBECONFIG or --context"
        ) from error
    chosen = current if context is None else next(c for c in contexts if c["name"] == context)
    namespace: str = chosen["context"].get("namespace") or "default"
    return namespace


def _from_pod(configuration: Any) -> str:
    config = _library()
    try:
        config.load_incluster_config(client_configuration=configuration)
        return (_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    except (config.ConfigException, OSError) as error:
        raise ConfigError(
            f"no cluster: the pod we run in has no account to use: {error}"
        ) from error


def _library() -> Any:
    from kubernetes import config  # noqa: PLC0415

    return config


def _default_file() -> Path:
    return Path("~/.kube/config").expanduser()


def _has_kubeconfig() -> bool:
    places = os.environ.get("KUBECONFIG") or str(_default_file())
    return any(Path(place).is_file() for place in places.split(os.pathsep) if place)
