"""A model and its optimizer."""

import unit_scaling as uu
from unit_scaling.transforms import unit_scale


def ready(make, width, base):
    """At a width; the settings are those that were tuned at the base."""
    model = unit_scale(make(width, attn_implementation="eager"))
    optimizer = uu.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, allow_non_unit_scaling_params=True)
    return model, optimizer
