"""The acceptance suite: what every kernel must do, on every backend.

``pytest --kernel=FILE`` runs it beside a project's own tests, ``kboot test FILE`` runs it alone.
"""
