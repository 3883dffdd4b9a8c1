"""Training: one LightningModule for all domains, from a tensor cache, resumable to the bit.

`python -m scidiff.training CACHE` needs torch, lightning, safetensors and PyYAML, nothing else.
"""
