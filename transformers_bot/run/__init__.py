"""From a plan to tensors: opening a source, running the plan, handing the result to transformers."""
