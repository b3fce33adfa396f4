"""Endings of the names of files that several readers know: images, and archives. Middle floor."""

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
