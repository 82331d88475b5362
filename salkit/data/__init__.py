"""Images and where they come from: data sets, files, downloads."""

from salkit.data.images import ImageSet, denormalise, load_distractors, load_images

__all__ = ["ImageSet", "denormalise", "load_distractors", "load_images"]
