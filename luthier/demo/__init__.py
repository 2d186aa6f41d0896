"""The bundled data set of `luthier demo`, and how its answers are scored."""
