"""Files turned into quantized files block by block, without ever holding a whole tensor."""
