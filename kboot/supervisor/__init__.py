"""Machines that stay: found again by their names, each in the care of a supervisor.

A supervisor is a process of its own that holds a backend, a boot server, one machine and its
console, and does what clients ask of it over a socket. It outlives its clients. When it dies,
however that is, its machine dies with it, and the next command clears away what it has left.

`places`: where a machine's files are; `client`: to ask for things, by `kboot.rpc`; `launch`: to
start a supervisor; `supervisor`: the process itself. After the result of the verb ``attach``, the
connection is the serial line.
"""
