"""The cluster backend: a KubeVirt VirtualMachine, and an nginx Pod to boot it from."""
