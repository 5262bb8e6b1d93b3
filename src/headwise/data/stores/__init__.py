"""Where images lie: caches, list-file trees, prepared upstream sets, few-shot draws."""
