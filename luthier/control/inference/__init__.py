"""One completion: resolve, route, stream."""
