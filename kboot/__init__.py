"""kboot boots a kernel the way servers boot, watches its serial console, and judges it."""

__version__ = "0.1.0"
