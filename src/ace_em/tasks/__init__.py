"""The paper's idea: image-pose-image (eq. 3-9) and pose-image-pose (eq. 11-13)."""
