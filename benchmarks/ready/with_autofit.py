"""A model and its optimizer."""

import autofit


def ready(make, width, base):
    """At a width; the settings are those that were tuned at the base."""
    model = make(width)
    mu = autofit.muify(model, base=base, grow="head_dim")
    optimizer = mu.optimizer("adamw", lr=1e-3, weight_decay=0.1)
    return model, optimizer
