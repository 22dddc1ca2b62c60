"""The test cluster's API server: paths, verbs, watches, and the ways to pods and machines."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Mapping

import aiohttp
from aiohttp import web

from tests.kubevirt import schema
from tests.kubevirt.cluster import admission, answers, endings
from tests.kubevirt.cluster.actions import Actions
from tests.kubevirt.cluster.connections import Connections, cut
from tests.kubevirt.cluster.faults import DAMAGED, Faults
from tests.kubevirt.cluster.machines import Virt
from tests.kubevirt.cluster.pods import Kubelet, as_wanted
from tests.kubevirt.cluster.rights import Rights
from tests.kubevirt.cluster.room import QUOTA
from tests.kubevirt.cluster.selection import (
    Unfit,
    encode_strings,
    is_outdated,
    json_patch,
    merge,
    selects,
)
from tests.kubevirt.cluster.store import Gone, Object, Store, moment
from tests.kubevirt.recordings import RECORDINGS

_PATH = re.compile(
    r"/apis?/(?P<version>v1|[\w.]+/\w+)/namespaces/(?P<namespace>[^/]+)/(?P<plural>[^/?]+)"
    r"(?:/(?P<name>[^/?]+))?(?:/(?P<sub>[^/?]+))?(?:/(?P<rest>.*))?"
)
_KINDS = {
    "configmaps",
    "datavolumes",
    "events",
    "networkpolicies",
    "persistentvolumeclaims",
    "pods",
    "secrets",
    "services",
    "virtualmachineinstancereplicasets",
    "virtualmachineinstances",
    "virtualmachines",
}


#: RFC 9110, in the C locale that Python begins with.
_DATE = "%a, %d %b %Y %H:%M:%S GMT"


class Api:
    def __init__(
        self, store: Store, kubelet: Kubelet, virt: Virt, *, token: str, namespaces: set[str]
    ) -> None:
        self._store = store
        self._kubelet = kubelet
        self._virt = virt
        self._actions = Actions(virt)
        self.token = token
        self._namespaces = namespaces
        self.faults = Faults()
        #: Method and path of every request so far.
        self.calls: list[str] = []
        #: What a handler has failed with: the state behind it cannot be relied on any more.
        self.failure = ""
        self.connections = Connections()
        self.rights = Rights()
        self.kubevirt: Object = {
            "spec": {},
            "status": {"phase": "Deployed", "observedKubeVirtVersion": "v1.9.0"},
        }

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        self.calls.append(f"{request.method} {request.path_qs}")
        self.connections.remember(request)
        try:
            return self._dated(await self._fault_or_answer(request))
        except (web.HTTPException, OSError):
            raise
        except Exception as error:
            self.failure = f"{request.method} {request.path_qs}: {error!r}"
            raise

    def _dated(self, answer: web.StreamResponse) -> web.StreamResponse:
        if not answer.prepared:
            answer.headers["Date"] = moment(self._store.ahead_s).strftime(_DATE)
        return answer

    async def _fault_or_answer(self, request: web.Request) -> web.StreamResponse:
        if fault := self.faults.take(request):
            if fault.done:
                await self._answer(request)
                cut(request)
            elif (answer := await self.faults.happen(fault, request)) is not None:
                return answer
        return await self._answer(request)

    async def hang_up(self) -> None:
        """Cut all connections: an orderly end of TLS may wait for its other side for long."""
        self.connections.cut()
        await asyncio.sleep(0.05)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or token != self.token:
            return answers.unauthorised()
        if review := await self._review(request):
            return review
        match = _PATH.fullmatch(request.path)
        if match is None or match["plural"] not in _KINDS or not _is_known(match):
            return web.Response(status=404, text="404 page not found\n")
        where = match.groupdict()
        if refusal := self._refuse(request, where):
            return refusal
        if where["version"].startswith("subresources."):
            return await self._act(request, where)
        handlers = {"log": self._log, "proxy": self._proxy, "eviction": self._evict}
        return await handlers.get(where["sub"], self._object)(request, where)

    def _refuse(self, request: web.Request, where: Mapping[str, str]) -> web.Response | None:
        if where["namespace"] not in self._namespaces and request.method == "POST":
            missing = f'namespaces "{where["namespace"]}" not found'
            return answers.status(404, "NotFound", missing)
        return self.rights.refuse(request, where)

    async def _review(self, request: web.Request) -> web.Response | None:
        """What the account may do, and how KubeVirt is set up."""
        if request.path.endswith("/selfsubjectrulesreviews"):
            rules = self.rights.review()
            return web.json_response({"status": {"resourceRules": rules}}, status=201)
        if request.path == "/apis/kubevirt.io/v1/kubevirts":
            return web.json_response({"items": [self.kubevirt]})
        if request.path.startswith("/apis/cdi.kubevirt.io/"):
            if not self._virt.storage.cdi:
                return web.Response(status=404, text="404 page not found\n")
            if request.path == "/apis/cdi.kubevirt.io/v1beta1":
                return web.json_response({"kind": "APIResourceList", "resources": []})
        return None

    # ----------------------------------------------------------------------------- objects

    async def _object(self, request: web.Request, where: Mapping[str, str]) -> web.StreamResponse:
        plural, namespace, name = where["plural"], where["namespace"], where["name"]
        if name:
            found = self._store.get(plural, namespace, name)
            if found is None:
                return answers.not_found(plural, name)
            if request.method == "PATCH":
                return await self._patch(request, plural, found)
            return (
                await self._delete(request, plural, found)
                if request.method == "DELETE"
                else web.json_response(found)
            )
        if request.method == "POST":
            return await self._create(request, plural, namespace)
        if request.query.get("watch") == "true":
            return await self._watch(request, plural, namespace)
        items = [
            each for each in self._store.find(plural, namespace) if selects(request.query, each)
        ]
        version = str(self._store.version)
        return web.json_response({"items": items, "metadata": {"resourceVersion": version}})

    async def _delete(self, request: web.Request, plural: str, found: Object) -> web.Response:
        """What runs a machine is not gone at once, if it is not to be."""
        body = await request.json() if request.can_read_body else {}
        wanted = body.get("preconditions", {}).get("resourceVersion")
        if wanted not in {None, found["metadata"]["resourceVersion"]}:
            return answers.precondition(plural, found, wanted)
        grace_s = endings.grace_of(request, body)
        instance = endings.instance_behind(self._virt, found) if plural == "pods" else None
        if plural == "virtualmachines":
            self._virt.spawn(endings.delete_machine(self._virt, found))
        elif instance is not None and grace_s != 0:
            endings.delete_pod(self._virt, instance, grace_s=grace_s or endings.POD_GRACE_S)
        else:
            self._store.delete(plural, found)
        return web.json_response(found)

    async def _evict(self, _: web.Request, where: Mapping[str, str]) -> web.StreamResponse:
        pod = self._store.get("pods", where["namespace"], where["name"])
        if pod is None:
            return answers.not_found("pods", where["name"])
        if instance := endings.instance_behind(self._virt, pod):
            grace_s = endings.POD_GRACE_S
            endings.delete_pod(self._virt, instance, grace_s=grace_s, why=endings.EVICTED)
        else:
            self._store.delete("pods", pod)
        return web.json_response({"kind": "Status", "status": "Success", "code": 201}, status=201)

    async def _create(self, request: web.Request, plural: str, namespace: str) -> web.Response:
        manifest: Object = await request.json()
        name = manifest["metadata"]["name"]
        if refusal := self._judge(request, plural, namespace, manifest):
            return refusal
        if request.query.get("dryRun") == "All":
            return web.json_response(manifest, status=201)
        if plural == "pods" and self._virt.room.quota_is_used_up(namespace):
            text = f'pods "{name}" is forbidden: {QUOTA.partition(": ")[2]}'
            return answers.status(403, "Forbidden", text)
        if plural == "virtualmachines":
            manifest["status"] = {"printableStatus": "Stopped", "conditions": []}
        encode_strings(manifest)
        return web.json_response(self._store.create(plural, manifest), status=201)

    def _judge(
        self, request: web.Request, plural: str, namespace: str, manifest: Object
    ) -> web.Response | None:
        """What is refused of a new object."""
        name = manifest["metadata"]["name"]
        strict = request.query.get("fieldValidation") == "Strict"
        known = "kubevirt" not in manifest["apiVersion"] or RECORDINGS.is_dir()
        if strict and known and (faults := schema.faults(manifest)):
            return answers.strict(faults)
        if refusal := self._webhook(plural, manifest):
            return refusal
        if self._store.get(plural, namespace, name):
            return answers.already_exists(plural, name)
        return None

    def _webhook(self, plural: str, manifest: Object) -> web.Response | None:
        if plural in {"virtualmachines", "virtualmachineinstances"}:
            return admission.refusal(manifest)
        return self._virt.storage.refusal(manifest) if plural == "datavolumes" else None

    async def _patch(self, request: web.Request, plural: str, found: Object) -> web.Response:
        change = await request.json()
        if is_outdated(change, found):
            return answers.outdated(plural, found["metadata"]["name"])

        def apply(current: Object) -> None:
            if request.content_type == "application/json-patch+json":
                for step in change:
                    json_patch(current, step)
            else:
                merge(current, change)
            encode_strings(current)

        try:
            return web.json_response(self._store.update(plural, found, apply))
        except Unfit:
            text = "the server rejected our request due to an error in our request"
            return answers.status(422, "Invalid", text)

    async def _watch(self, request: web.Request, plural: str, namespace: str) -> web.StreamResponse:
        stream = web.StreamResponse()
        stream.content_type = "application/json"
        await stream.prepare(request)
        version = int(request.query["resourceVersion"])
        try:
            async for event in self._store.watch(plural, namespace, version):
                if event["type"] == "BOOKMARK" or selects(request.query, event["object"]):
                    await stream.write(json.dumps(event).encode() + b"\n")
        except Gone:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
            await stream.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
        return stream

    # ------------------------------------------------------------------- pods and machines

    async def _act(self, request: web.Request, where: Mapping[str, str]) -> web.StreamResponse:
        namespace, name, action = where["namespace"], where["name"], where["sub"]
        if not answers.suits_any_type(request.headers.get("Accept", "*/*")):
            return answers.not_acceptable()
        if action == "console":
            return await self._actions.console(request, namespace, name)
        if action == "portforward":
            port = int(where["rest"].partition("/")[0])
            return await self._actions.portforward(request, namespace, name, port)
        if where["plural"] == "virtualmachines":
            return self._actions.act(namespace, name, action)
        return self._actions.act_on_instance(namespace, name, action)

    async def _log(self, request: web.Request, where: Mapping[str, str]) -> web.StreamResponse:
        pod = self._store.get("pods", where["namespace"], where["name"])
        if pod is None:
            return answers.not_found("pods", where["name"])
        if request.query.get("container") == "guest-console-log":
            machine = pod["metadata"]["labels"]["vm.kubevirt.io/name"]
            lines = self._virt.instances[machine].lines().splitlines(keepends=True)
            return web.Response(body=b"".join(lines[-int(request.query["tailLines"]) :]))
        running = self._kubelet.running.get(pod["metadata"]["uid"])
        if running is None or not running.log.exists():
            return answers.status(400, "BadRequest", "container is waiting to start")
        if "follow" not in request.query:
            return web.Response(body=b"".join(as_wanted(running.lines(), request.query)))
        stream = web.StreamResponse()
        await stream.prepare(request)
        async for data in self._kubelet.follow(running, request.query):
            await stream.write(data)
        return stream

    async def _proxy(self, request: web.Request, where: Mapping[str, str]) -> web.StreamResponse:
        _, name, port = where["name"].split(":")
        service = self._store.get("services", where["namespace"], name)
        if service is None:
            return answers.not_found("services", name)
        here = self._endpoint(service, port)
        if here is None:
            return answers.status(
                503, "ServiceUnavailable", f'no endpoints available for service "{name}"'
            )
        url = f"http://127.0.0.1:{here}/{where['rest']}"
        # The API server keeps the caller's authorisation for itself.
        headers = {key: value for key, value in request.headers.items() if key != "Authorization"}
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method,
                url,
                data=_body(request) if request.can_read_body else None,
                headers=headers,
            ) as answer,
        ):
            stream = web.StreamResponse(status=answer.status)
            if "Content-Length" in answer.headers:
                stream.content_length = int(answer.headers["Content-Length"])
            await stream.prepare(request)
            async for data in answer.content.iter_chunked(1 << 20):
                await stream.write(data)
            return stream

    def _endpoint(self, service: Object, port: str) -> int | None:
        """The port on this host of a ready pod behind a Service."""
        wanted = service["spec"]["selector"].items()
        numbers = [each["port"] for each in service["spec"]["ports"] if each["name"] == port]
        if not numbers:
            return None
        target = {80: 8080}.get(numbers[0], numbers[0])
        for pod in self._store.find("pods", service["metadata"]["namespace"]):
            running = self._kubelet.running.get(pod["metadata"]["uid"])
            ready = {"type": "Ready", "status": "True"} in pod.get("status", {}).get(
                "conditions", ()
            )
            if running is None or asyncio.get_running_loop().time() < running.behind_service_s:
                continue
            if ready and wanted <= pod["metadata"]["labels"].items():
                return running.ports.get(target)
        return None


def _is_known(match: re.Match[str]) -> bool:
    """Whether there is such a subresource: exec, for one, there is not."""
    virtual = match["version"].startswith("subresources.")
    return virtual or match["sub"] in {None, "eviction", "log", "proxy"}


async def _body(request: web.Request) -> AsyncIterator[bytes]:
    async for piece in request.content.iter_chunked(1 << 20):
        yield piece.swapcase() if request.get(DAMAGED) else piece


async def serve(api: Api, context: ssl.SSLContext) -> tuple[web.AppRunner, int]:
    """Listen on a free port of the loopback interface."""
    app = web.Application(client_max_size=1 << 40)
    app.router.add_route("*", "/{path:.*}", api.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port: int = runner.addresses[0][1]
    await asyncio.sleep(0)
    return runner, port
