"""When to choose which method, for whoever decides; how each works is in its module and its paper."""

ADVICE = {
    "bot": "Neighbouring units and layers are blended by a wavelet low-pass, in both directions. The default, for any "
    "change of size: grown models compute what the source does as far as the sizes allow, shrunk ones keep the largest "
    "part of it, most of all with --calibration. --gain raw gives the published method as written, for comparison.",
    "weight_selection": "The small model is made of evenly spaced entries of the first layers. Choose it to compare, "
    "or where a smaller model is to be trained for long and only needs a good start.",
    "importance": "The small model is made of the units, heads and layers that do most, measured on --calibration data "
    "where such is given. Choose it to prune a model before it is trained on.",
    "fpi": "The large model is made of copies of units, drawn at random, whose readers share their weight: it computes "
    "what the source does at whole multiples of the width. Choose it to reproduce bert2BERT.",
    "aki": "As fpi, but new units come from the layer above: it computes less of what the source does and may train "
    "faster. Choose it to reproduce bert2BERT.",
    "stack": "The layers are put on top of themselves as often as needed. Choose it for growing in depth during "
    "pre-training; it does not keep what the model computes.",
    "interpolate": "Every layer is repeated in its place. Choose it for growing in depth; it does not keep what the "
    "model computes, and suits residual networks that are trained on.",
    "depth_upscale": "Two copies of the model are joined, one without its last and one without its first layers. "
    "Choose it for growing in depth up to twice the layers, with much training after it.",
    "tile": "Whole copies stand side by side and their readers share the weight: the large model computes what the "
    "source does. Only whole multiples of the width. Combine it with a method for depth: tile+stack.",
    "lemon": "Growth without any change of what the model computes, also at widths that are no whole multiples where "
    "the architecture allows it. Choose it where the grown model must start exactly where the source is.",
    "front": "The stack of layers is seen as a signal and its low frequencies are kept, in all directions. Choose it "
    "to compare.",
    "scratch": "Nothing is taken from the source but its configuration: random weights, for comparison.",
    "ligo": "How to grow is learned from data, a linear combination of units and layers: give data with --fit-data. "
    "Without a fit the result is of no use. Choose it where some compute can be spent before training.",
    "mango": "As ligo with one small operator for all layers together: give data with --fit-data. Without a fit the "
    "result is of no use. The MLP must stay the same multiple of the width.",
}
