"""A raw-sensor denoiser whose network reads all four sources of an MSConv2d. See DATASHEET.md."""
