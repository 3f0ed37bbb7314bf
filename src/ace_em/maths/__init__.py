"""Mathematics on tensors, independent of the microscope: Fourier transforms, rotations, central slices."""
