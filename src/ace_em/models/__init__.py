"""What is learnt: pose encoders (image to pose) and decoders (pose to image)."""
