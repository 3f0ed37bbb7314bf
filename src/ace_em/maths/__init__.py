"""Mathematics on tensors: Fourier transforms, rotations, central slices. Knows no microscope."""
