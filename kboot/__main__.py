"""``python -m kboot``: the command line."""

import sys

from kboot.cli import main

sys.exit(main())
