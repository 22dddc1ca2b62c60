"""Find the cluster: a kubeconfig file's context, or the pod that we run in."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from kboot.errors import ConfigError, InfraError
from kboot.kubevirt.api.client import Client

#: The settings that name files with certificates and keys.
_FILES = ("ssl_ca_cert", "cert_file", "key_file")

#: Where in memory is what the library had written to a file of this name: it writes nothing twice.
_in_memory: dict[str, str] = {}

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def connect(
    context: str | None = None, namespace: str | None = None, *, kubeconfig: str = ""
) -> Client:
    """A client for the cluster that the kubeconfig file, or the pod we run in, names.

    `context` of None is the file's current one, and `namespace` of None the context's own, or
    ``default``. An empty `kubeconfig` is what the variable KUBECONFIG says. Proxy and certificates
    are those of the kubeconfig, never of the environment.
    `ConfigError` if there is none. Nothing is sent to the cluster yet.
    """

    places = kubeconfig or _default_places()

    def load() -> tuple[Any, str]:
        configuration = _blank()
        if context is None and not _is_there(places) and _ACCOUNT.is_dir():
            return configuration, _from_pod(configuration)
        return configuration, _from_file(configuration, places, context)

    return Client(load, namespace=namespace)


def current_context(kubeconfig: str = "") -> str:
    """The name of the kubeconfig's current context; empty if there is none."""
    config = _library()
    try:
        _, current = config.list_kube_config_contexts(kubeconfig or _default_places())
    except (config.ConfigException, OSError):
        return ""
    name: str = current["name"]
    return name


def _blank() -> Any:
    from kubernetes import client  # noqa: PLC0415  half a second

    configuration = client.Configuration()
    # It has taken these from the environment by now, where they are meant for the Internet.
    configuration.proxy = None
    configuration.no_proxy = None
    return configuration


def _from_file(configuration: Any, places: str, context: str | None) -> str:
    from yaml import YAMLError  # noqa: PLC0415

    config = _library()
    if not places:
        raise ConfigError("no cluster: there is no home directory; set HOME or KUBECONFIG")
    scratch = _scratch_directory()
    try:
        # Named, as the library asks the environment only once in its life.
        config.load_kube_config(
            places,
            context=context,
            client_configuration=configuration,
            temp_file_path=str(scratch),
        )
        contexts, current = config.list_kube_config_contexts(places)
    except (config.ConfigException, YAMLError, OSError, ValueError, TypeError) as error:
        which = f"context {context}" if context else "the current context"
        raise ConfigError(
            f"no cluster: {which} of the kubeconfig cannot be used: {error}; "
            "see kubectl config get-contexts, and set KUBECONFIG or --context"
        ) from error
    finally:
        _keep_off_the_disk(configuration, scratch)
    _keep_off_the_disk_when_renewed(configuration, scratch)
    chosen = current if context is None else next(c for c in contexts if c["name"] == context)
    namespace: str = chosen["context"].get("namespace") or "default"
    return namespace


def _keep_off_the_disk(configuration: Any, scratch: Path) -> None:
    """Have in memory what the library has written to `scratch`: keys, which would stay there when
    we are killed.
    """
    for setting in _FILES:
        path = getattr(configuration, setting)
        if path and path not in _in_memory and Path(path).parent == scratch:
            descriptor = os.memfd_create(setting)
            os.write(descriptor, Path(path).read_bytes())
            _in_memory[path] = f"/proc/self/fd/{descriptor}"
        setattr(configuration, setting, _in_memory.get(path, path))
    shutil.rmtree(scratch, ignore_errors=True)


def _keep_off_the_disk_when_renewed(configuration: Any, scratch: Path) -> None:
    """The library asks this hook for the token before each use; it then sets all it knows anew."""
    renew = configuration.refresh_api_key_hook
    if renew is None:
        return

    def renew_and_keep(renewed: Any) -> None:
        try:
            renew(renewed)
        finally:
            _keep_off_the_disk(renewed, scratch)
            renewed.refresh_api_key_hook = renew_and_keep

    configuration.refresh_api_key_hook = renew_and_keep


def _from_pod(configuration: Any) -> str:
    config = _library()
    try:
        loader = config.incluster_config.InClusterConfigLoader(
            token_filename=str(_ACCOUNT / "token"), cert_filename=str(_ACCOUNT / "ca.crt")
        )
        loader.load_and_set(configuration)
        return (_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    except (config.ConfigException, OSError) as error:
        raise ConfigError(
            f"no cluster: the pod we run in has no account to use: {error}"
        ) from error


def _library() -> Any:
    from kubernetes import config  # noqa: PLC0415

    return config


def _default_places() -> str:
    """Where kubectl looks; empty if nothing says where that is."""
    try:
        return os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
    except RuntimeError:
        # In a container, a user may have no home.
        return ""


def _scratch_directory() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="kboot-"))
    except OSError as error:
        raise InfraError(
            f"no directory for temporary files can be written to: {error}; set TMPDIR to one"
        ) from error


def _is_there(places: str) -> bool:
    return any(Path(place).is_file() for place in places.split(os.pathsep) if place)
