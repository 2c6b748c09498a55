"""Pure functions on tensors: grouping, affine quantization, nibble packing, SQNR."""
