"""The architectures that are built in, a file of data each."""
