"""Put the user's factors on the sites, and leave out the sites that get none."""

from __future__ import annotations

from dataclasses import dataclass, replace

from autofit.errors import PlanError
from autofit.roles import Roles, Site
from autofit.tunables import Tunables

ALWAYS = ("readout", "attention")
"""Kinds of sites that are worth a line in the report even where nothing is added."""


@dataclass(frozen=True)
class Tune:
    """``Roles -> Roles``.

    Attributes:
        tunables: the user's factors, at any width.
    """

    tunables: Tunables

    def __call__(self, roles: Roles) -> Roles:
        """Set the sites' own factors.

        Raises:
            PlanError: a pattern of names matches nothing, or a site cannot take the factor.
        """
        self.tunables.check_used({n: r.parameter.names for n, r in roles.parameters.items()})
        sites = [replace(s, tuned=self._factor(s)) for s in roles.sites]
        kept = (s for s in sites if s.kind in ALWAYS or s.treatment == "apply" or s.multiplier != 1)
        return replace(roles, sites=tuple(kept))

    def _factor(self, site: Site) -> float:
        by_weight = {"readout": self.tunables.output, "embedding": self.tunables.embedding}
        if site.kind in by_weight:
            return 1.0 if self.tunables.folded else by_weight[site.kind].multiplier  # type: ignore[union-attr]
        factor = self.tunables.attention_logits if site.kind == "attention" else self.tunables.residual_branch
        if factor != 1 and site.treatment == "unsupported":
            raise PlanError(f"attention_logits={factor:g} has no place here: {site.reason}", where=site.where)
        return factor
