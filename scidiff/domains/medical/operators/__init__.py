"""Measurements of medical volumes: tomography, blur, down-sampling, masks, mixtures. torch alone.

Volumes are [Z, 1, Y, X]: the slices are the batch, and an operator of slices has in_shape (1, Y, X). What mixes slices
(cone beam, down-sampling along z) takes whole volumes, in_shape (Z, 1, Y, X). Every operator is a
`scidiff.core.operator.LinearOperator` with exact adjoint, norm, pinv and prox.
"""
