"""Tests of kboot itself."""
