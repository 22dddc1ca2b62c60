"""Results that people and CI systems read: test suites of a kernel, evidence. Pure functions."""
