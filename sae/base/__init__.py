"""Ground floor: errors, files, configuration. Nothing here knows what a model is."""
