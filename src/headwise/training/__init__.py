"""The loop over phases: train, score, mask, fit, test, store."""
