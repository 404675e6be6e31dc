"""Methods that learn from data how to grow: their operators, their batches, the fit."""
