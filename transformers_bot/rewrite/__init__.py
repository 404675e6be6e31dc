"""Rewriting a source into an equivalent one that a low-pass shrinks with less loss.

Three steps keep the network's outputs: norms are folded into their readers (`folding`), units are put in
another order (`order`), and the residual stream is turned to another basis (`principal`), in one product
with the low-pass that follows. Then `principal.match_norm` sets the norms to what the low-pass leaves of the
stream. If there are calibration batches, `calibration` fits every matrix to what is left of its input.

None of this is in the paper. Ashkboos et al., "SliceGPT" (arXiv 2401.15024), turn a pre-norm stream to its
principal components before they cut it.
"""
