"""What pytest takes from the root of the rootdir only."""

# pytest's own plugin for testing plugins: tests run pytest and read what a user would see.
pytest_plugins = ("pytester",)
