"""Training jobs as customers see them."""
