"""Image synthesis: a class-conditional BigGAN, with a layer in every norm of its generator."""
