"""Persistent machines: found again by their names, each with a supervisor.

A supervisor is a process of its own that holds a backend, a boot server, one machine and its
console, and does what clients ask of it over a socket. It outlives its clients. When it dies, a
local machine dies with it, and the next command removes what it has left; one on a cluster runs
on, and another supervisor can take it over.

`registry`: directories and locations by name; `client`: start a supervisor, send it requests;
`locate`: machines without a supervisor here; `supervisor`: the process; `verbs`: the requests;
`session`: what is done with the machine; its parts are `pushes`, `handover`, `events` and
`shared_console`.
"""
