"""Rewriting a source into an equivalent one that a low-pass shrinks with less loss.

Three steps, each with the law that the network's outputs stay: norms are folded (`network`), units are
put in another order (`order`), the residual stream is turned into another basis (`principal`), which is
one product with the low-pass that follows. A fourth, `principal.match_norm`, then sets the norms to what the
low-pass leaves of the stream. Where the source may run on a few batches, a fifth (`calibration`) fits every
matrix to what is left of its input.

The paper has none of it; Ashkboos et al., "SliceGPT" (arXiv 2401.15024), rotates a pre-norm stream to
its principal components to cut it.
"""
