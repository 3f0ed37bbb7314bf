"""The two training tasks of the paper: image-pose-image (eq. 3-10) and pose-image-pose (eq. 11-13), and their schedule."""
