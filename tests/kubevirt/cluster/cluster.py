"""Start and stop the test cluster, and reach into it from a test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from kboot import state
from tests.kubevirt.cluster.api import Api, serve
from tests.kubevirt.cluster.faults import Fault
from tests.kubevirt.cluster.instances import Instance
from tests.kubevirt.cluster.machines import MakeGuest, Virt, qemu, qemu_with_saved_firmware
from tests.kubevirt.cluster.pods import Kubelet
from tests.kubevirt.cluster.store import Object, Store
from tests.kubevirt.cluster.tls import server_context

TOKEN = "cluster-t0ken"
NAMESPACE = "team"

_Result = TypeVar("_Result")


class Cluster:
    """A running test cluster. Its parts live on a thread of their own; reach them by `call`."""

    store: Store
    kubelet: Kubelet
    virt: Virt
    api: Api
    port: int
    #: What clients know the API server by: the kubeconfig's certificate-authority-data.
    authority: str

    def __init__(self, directory: Path, make_guest: MakeGuest) -> None:
        self.directory = directory
        self._make_guest = make_guest
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._ready: threading.Event
        self._thread: threading.Thread
        #: Why it must not be used any more, as a test has found out.
        self.broken = ""

    # ------------------------------------------------------------------------ for tests

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def write_kubeconfig(
        self, path: Path, *, token: str = TOKEN, namespace: str = NAMESPACE
    ) -> Path:
        """A kubeconfig file for this cluster; JSON is YAML."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [
                {
                    "name": "test",
                    "cluster": {
                        "server": self.url,
                        "certificate-authority-data": self.authority,
                    },
                }
            ],
            "users": [{"name": "tester", "user": {"token": token}}],
            "contexts": [
                {
                    "name": "test",
                    "context": {"cluster": "test", "user": "tester", "namespace": namespace},
                }
            ],
        }
        path.write_text(json.dumps(config))
        return path

    def call(self, function: Callable[[], _Result]) -> _Result:
        """Run `function` on the cluster's own thread."""

        async def run() -> _Result:
            return function()

        return self.wait(run())

    def wait(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    def order(self, pattern: str, **fault: Any) -> None:
        """What the next requests that the pattern finds get instead of an answer."""
        self.call(lambda: self.api.faults.order(Fault(pattern=pattern, **fault)))

    def objects(self, plural: str) -> list[Object]:
        """The objects that there are, but for those that are ending."""
        return self.call(
            lambda: [
                thing
                for thing in self.store.find(plural)
                if "deletionTimestamp" not in thing["metadata"]
            ]
        )

    def instance(self) -> Instance:
        """The one machine there is."""
        (instance,) = self.virt.instances.values()
        return instance

    def stop_machine(self) -> None:
        """What ``virtctl stop`` does to the one machine there is."""
        (vm,) = self.objects("virtualmachines")
        self.wait(self.virt.stop(vm))

    def drop_consoles(self) -> None:
        def drop() -> None:
            for instance in self.virt.instances.values():
                instance.drop_session()

        self.call(drop)

    def delete(self, plural: str, name: str) -> None:
        def delete() -> None:
            for thing in self.store.find(plural):
                if thing["metadata"]["name"] == name:
                    self.store.delete(plural, thing)

        self.call(delete)

    def calls(self, pattern: str = "") -> list[str]:
        return self.call(lambda: [call for call in self.api.calls if pattern in call])

    # ------------------------------------------------------------------------- its life

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self._start()
        try:
            yield
        finally:
            self.stop()

    def renew_if_broken(self) -> None:
        """Begin anew, with nothing in it, where a test has broken it: the next must not suffer."""
        if self._is_sound():
            return
        self.stop()
        self._start()

    def _is_sound(self) -> bool:
        if self.broken or not self._thread.is_alive():
            return False
        try:
            return not self.call(lambda: self.api.failure)
        except TimeoutError:
            return False

    def _start(self) -> None:
        self.broken = ""
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="test-cluster")
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the test cluster does not start")

    def stop(self) -> None:
        """End its thread, and all that it has started."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(timeout=30)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._loop.close()

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        self.store = Store()
        self.kubelet = Kubelet(self.store, self.directory, "cluster.local")
        self.virt = Virt(self.store, self.kubelet, self.directory, self._make_guest)
        self.api = Api(self.store, self.kubelet, self.virt, token=TOKEN, namespaces={NAMESPACE})
        context, self.authority = server_context()
        runner, self.port = await serve(self.api, context)
        async with contextlib.AsyncExitStack() as stack:
            # Each of them, in whatever state the others are.
            stack.push_async_callback(_drop_unanswered)
            stack.push_async_callback(_cancel_others)
            stack.push_async_callback(runner.cleanup)
            stack.push_async_callback(self.api.hang_up)
            stack.callback(self.kubelet.close)
            stack.callback(self.virt.close)
            stack.callback(self.store.end_watches)
            self._ready.set()
            await self._stop.wait()


async def _drop_unanswered() -> None:
    """Close connections whose TLS handshake has not ended: nobody but the loop knows them."""
    for transport in list(getattr(asyncio.get_running_loop(), "_transports", {}).values()):
        transport.abort()
    await asyncio.sleep(0)


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@contextlib.contextmanager
def cluster_without_firmware() -> Iterator[Cluster]:
    """A test cluster whose machines start with their firmware up, where that can be had."""
    with qemu_with_saved_firmware() as make_guest, running_cluster(make_guest) as cluster:
        yield cluster


@contextlib.contextmanager
def running_cluster(make_guest: MakeGuest = qemu) -> Iterator[Cluster]:
    """A test cluster for the length of the ``with``."""
    with state.run_directory() as directory:
        cluster = Cluster(directory, make_guest)
        with cluster.running():
            yield cluster
