"""Instance segmentation: Mask R-CNN of torchvision's parts, with a layer in every place of a norm and an activation."""
