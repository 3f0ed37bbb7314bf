"""Neural networks: pose encoders (image to pose) and decoders (pose to image)."""
