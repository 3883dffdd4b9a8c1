"""The conformance kit for those who extend scidiff: a domain, a path, a solver, a backbone.

    check_domain(MyDomain, objects)        round trips, files, templates, loss, masks, two steps of sampling, configs
    check_path(path, space, shape)         derivatives, conversions, marginals by moments, consistency of the posterior
    check_solver_order(method, order)      measured order against exact endpoints
    check_operator(operator)               adjoint, linearity, gradients twice, batches, norm, SVD, pinv and prox
    assert_equivariant(network, ...)       permutations of the nodes

Each raises AssertionError with a sentence that says what does not hold, and returns what it measured.
"""

from scidiff.testing.domain import Entrywise, check_configs, check_domain, state_spec
from scidiff.testing.network import assert_equivariant
from scidiff.testing.operator import check_operator
from scidiff.testing.path import check_path
from scidiff.testing.solver import check_solver_order

__all__ = ["Entrywise", "assert_equivariant", "check_configs", "check_domain", "check_operator", "check_path",
           "check_solver_order", "state_spec"]
