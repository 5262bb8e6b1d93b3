"""Making caches of upstream's sets, in a process of its own."""
