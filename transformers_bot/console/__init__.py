"""What is said to whoever calls: log messages, one progress bar, text and tables of results."""
