"""What a run found, from its evidence on disk: pure functions of it."""
