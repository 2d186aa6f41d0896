"""What every floor stands on: errors, settings, registry, ids, clock, logs, pages."""
