"""Images with masks, a class for every pixel, and the batches made of them.

A batch is a dict of numpy arrays, b rows of a global batch per host. The image
lies at the upper left of a canvas, and all images of a batch on canvases of one
size, (H, W) or (W, H):
  image: uint8 [b, H, W, 3], 0 beyond the image; the task normalises it on the
    device.
  image_size: int32 [b, 2], height and width of the image on the canvas.
  original_size: int32 [b, 2], those of the image as it was.
  gt_classes: uint8 [b, H, W], the class of each pixel; IGNORE where none
    counts, also beyond the image.
  index: int32 [b], the example's number in its split; -1 in blank rows.
  mask: bool [b]; False for rows that only fill up an eval batch and for images
    that cannot be read.
"""
