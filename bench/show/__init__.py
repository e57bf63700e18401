"""Results as text and as plots, from their JSON alone."""
