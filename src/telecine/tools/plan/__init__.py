"""`telecine plan`: what a training run needs, and what fits a device."""
