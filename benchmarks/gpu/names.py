"""Names of the compared variants in results. A suffix says how a baseline is spelled."""

BARE = "cuDNN convolution of the image alone"
TILE = "tile, concatenate, convolve"
ADDS = "convolution and separate additions"
SUFFIX_LAST = ", channels last"
SUFFIX_COMPILED = ", torch.compile"
