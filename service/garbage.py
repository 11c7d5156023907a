"""Python's garbage collector, kept from what stays until the process ends."""

import gc

NEW_OBJECTS = 20_000
"""Collect when so many are there that were not before: more than some hundred requests at once
make, of which none leaves a cycle behind. Python's own 700 collects all the time for nothing."""


def spare_what_is_loaded() -> None:
    """Call once everything is imported and loaded, in a process that only serves from then on.

    A full collection walks every object: those of the imported packages, 400,000, take it 0.3 s, in
    which no thread of the process runs Python, the one that scores included. A model that is
    replaced later is freed all the same: none of its weights lies in a cycle.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS)
