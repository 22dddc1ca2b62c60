"""Find the change that brought a failure, though it may not fail each time."""
