"""One boot server for all processes of a parallel run: one has it and lends it, others borrow it.

It is started when the first of them asks, and ends with the process that lends it. What they store
there is stored once, whoever brings it first.
"""

from kboot.sharing.borrower import Borrowed, borrow
from kboot.sharing.lender import lend

__all__ = ["Borrowed", "borrow", "lend"]
