"""A model and its optimizer."""

import mup


def ready(make, width, base):
    """At a width; the settings are those that were tuned at the base."""
    model = make(width)
    mup.set_base_shapes(model, make(base), delta=make(base * 3 // 2))
    model.apply(model._init_weights)
    optimizer = mup.MuAdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    return model, optimizer
