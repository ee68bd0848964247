"""Files, folders and settings of strangers: homes, models, what -o writes, the image and its compose file."""
