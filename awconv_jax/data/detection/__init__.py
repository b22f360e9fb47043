"""Images with boxes, and the batches made of them.

A batch is a dict of numpy arrays, b rows of a global batch per host. Boxes are
xyxy in pixels of the canvas, on which the image lies at the upper left. All
images of a batch lie on canvases of one size, (H, W) or (W, H):
  image: uint8 [b, H, W, 3], 0 beyond the image; the task normalises it on the
    device.
  image_size: int32 [b, 2], height and width of the image on the canvas.
  gt_boxes: float32 [b, M, 4].
  gt_labels: int32 [b, M], 0-based; `category_ids` has the categories.
  gt_valid: bool [b, M]; the boxes come first, then rows of zeros.
  image_id: int32 [b], as in the data set; -1 in blank rows.
  original_size: int32 [b, 2], height and width of the image as it was.
  mask: bool [b]; False for rows that only fill up an eval batch and for images
    that cannot be read.
In evaluation also, as crowds are not trained on:
  gt_crowd: bool [b, M], a box around many objects.
  gt_area: float32 [b, M], of the object in pixels of the original; COCO's is
    that of its outline, less than that of its box.
"""
