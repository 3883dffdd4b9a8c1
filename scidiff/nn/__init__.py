"""Backbones: networks that know tensors and component names, nothing of files or domains.

Signature: `forward(features, t, ctx, previous) -> raw`, with features and raw as dicts by component name, t [B] (or
[B, C] with times per component), ctx the batch's Context and previous the last clean estimates (or None).
"""
