"""Many runs: which are left, what asked for them, what became of them, how far a sweep is."""
