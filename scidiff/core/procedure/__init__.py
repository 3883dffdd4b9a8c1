"""Posterior solvers that are outer algorithms over calls of the network: RED-diff, DAPS, PnP-DM, PnP-Flow."""

from scidiff.core.procedure.base import Procedure, Progress
from scidiff.core.procedure.daps import DAPS
from scidiff.core.procedure.local import Local
from scidiff.core.procedure.pnp_dm import PnPDM
from scidiff.core.procedure.pnp_flow import PnPFlow
from scidiff.core.procedure.red_diff import REDDiff

__all__ = ["DAPS", "Local", "PnPDM", "PnPFlow", "Procedure", "Progress", "REDDiff"]
