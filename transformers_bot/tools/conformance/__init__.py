"""Whether an adapter fits the models of its type, found by running them."""
