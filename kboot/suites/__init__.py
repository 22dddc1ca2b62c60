"""Tests that run the kernel's own test suites in a guest: ``--kboot-kselftest DIRECTORY|TAR``."""
