"""Does a layer carry over? Trainings of tasks that no search has seen: instance segmentation and image synthesis.

After EvoNorm (arXiv 2004.02967, section 5): layers that were found on small classifiers in Mask R-CNN and in BigGAN.
"""
