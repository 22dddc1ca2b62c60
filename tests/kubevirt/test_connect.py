"""Which cluster it is, and what is said when there is none."""

from __future__ import annotations

import base64
import json
import pwd
import tempfile
from pathlib import Path

import pytest

from kboot.config import Config
from kboot.deadline import Deadline
from kboot.errors import ClusterError, ConfigError, InfraError
from kboot.kubevirt.api import CONFIG_MAPS, connect


def write(path: Path, server: str, **context: str) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "one",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "s3cr3t"}}],
        "contexts": [
            {"name": "one", "context": {"cluster": "c", "user": "u", **context}},
            {"name": "two", "context": {"cluster": "c", "user": "u", "namespace": "second"}},
        ],
    }
    path.write_text(json.dumps(config))


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(path))
    return path


def test_the_namespace_is_the_contexts_unless_another_is_named(kubeconfig: Path) -> None:
    write(kubeconfig, "http://127.0.0.1:1")
    assert connect().namespace == "default"
    write(kubeconfig, "http://127.0.0.1:1", namespace="first")
    assert connect().namespace == "first"
    assert connect("two").namespace == "second"
    assert connect("two", "mine").namespace == "mine"


def test_without_a_cluster_the_user_is_told_where_one_would_be_named(kubeconfig: Path) -> None:
    with pytest.raises(ConfigError, match=r"no cluster: the current context .* KUBECONFIG"):
        connect()
    write(kubeconfig, "http://127.0.0.1:1")
    with pytest.raises(ConfigError, match="no cluster: context three"):
        connect("three")
    kubeconfig.write_text("not: [a kubeconfig")
    with pytest.raises(ConfigError, match="no cluster"):
        connect()


def test_certificates_and_keys_of_a_kubeconfig_are_never_left_on_the_disk(
    kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    plugin = tmp_path / "plugin"
    plugin.write_text(
        "#!/bin/sh\n"
        "ends=$(date -u -d '+1 second' +%Y-%m-%dT%H:%M:%SZ)\n"
        'echo \'{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",'
        ' "status": {"token": "\'$(date +%s%N)\'", "expirationTimestamp": "\'$ends\'"}}\'\n'
    )
    plugin.chmod(0o755)
    write(kubeconfig, "https://127.0.0.1:1")
    config = json.loads(kubeconfig.read_text())
    # Of this test alone: the library remembers what it has written once.
    pem = str(tmp_path)
    config["clusters"][0]["cluster"]["certificate-authority-data"] = encoded("authority " + pem)
    config["users"][0]["user"] = {
        "client-certificate-data": encoded("certificate " + pem),
        "client-key-data": encoded("key " + pem),
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": str(plugin),
            "interactiveMode": "Never",
        },
    }
    kubeconfig.write_text(json.dumps(config))
    client = connect()
    configuration = client.session.configuration
    for _ in range(3):
        found = [configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file]
        texts = [Path(path).read_text() for path in found]
        assert texts == [f"{what} {pem}" for what in ("authority", "certificate", "key")]
        assert list(temporary.iterdir()) == []
        # So short-lived a token is asked for each time, and all else is then set once more.
        assert client.session.authorisation() != client.session.authorisation()


def test_a_proxy_of_the_environment_is_not_for_the_cluster(
    kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    write(kubeconfig, "https://127.0.0.1:1")
    assert connect().session.configuration.proxy is None


def test_a_cluster_that_cannot_be_reached_is_named_and_no_secret_told(kubeconfig: Path) -> None:
    write(kubeconfig, "http://127.0.0.1:1")
    with pytest.raises(ClusterError, match=r"http://127.0.0.1:1 cannot be reached") as error:
        connect().find(CONFIG_MAPS, Deadline(0.5))
    assert "s3cr3t" not in str(error.value)


def test_a_kubeconfig_that_is_named_is_the_one(tmp_path: Path, kubeconfig: Path) -> None:
    write(kubeconfig, "http://127.0.0.1:1", namespace="of-the-variable")
    write(tmp_path / "mine", "http://127.0.0.1:1", namespace="mine")
    assert connect(kubeconfig=str(tmp_path / "mine")).namespace == "mine"
    assert connect().namespace == "of-the-variable"
    found = Config(kubeconfig=f"{tmp_path}/mine:other").kubeconfig
    assert found == f"{tmp_path}/mine:{Path.cwd()}/other"


def test_without_a_home_the_user_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_uid: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for variable in ("HOME", "KUBECONFIG"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ConfigError, match="no home directory; set HOME or KUBECONFIG"):
        connect()


def test_without_a_temporary_directory_the_user_is_told_what_to_set(
    kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(kubeconfig, "http://127.0.0.1:1")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(InfraError, match=r"no directory for temporary files .*; set TMPDIR"):
        connect()
