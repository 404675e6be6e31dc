"""Output for the caller: log messages, the progress bar, texts, tables and pictures."""
