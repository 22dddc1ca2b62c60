"""Tests of the crash engine."""
