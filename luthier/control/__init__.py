"""The control plane: rules, rows and statuses. It never imports torch; it sends specs and reads events."""
