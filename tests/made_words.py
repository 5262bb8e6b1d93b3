"""Words of a command line that many tests share."""

TINY = ("backbone=vit_tiny_random", "dataset=dsprites_loc", "data=synthetic", "protocol=smoke")
"""A network and a task that need no file, in seconds."""
QUIET = ("trainer=cpu", "trainer.threads=1", "trainer.progress=false", "logger.pictures=false")
"""On one thread, whose numbers are the same everywhere, and without anything to look at."""
FAST = (*TINY, *QUIET)
