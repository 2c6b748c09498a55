"""HuggingFace folders of quantized models: written, and read by transformers; needs the extra ``hf``."""
