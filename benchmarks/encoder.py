"""Throughput, in particles per second, of the encoder of a run and of `ace-em predict` as a whole.

python benchmarks/encoder.py RUN PARTICLES --threads 2
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from ace_em.data.particles import Particles
from ace_em.inference.predictor import BLOCK, Predictor
from ace_em.run.folder import RunFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("particles", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    predictor = Predictor.load(RunFolder(args.run).encoder)
    particles = Particles.open(args.particles)
    images = predictor.images(particles, np.arange(min(BLOCK, len(particles))))
    model = predictor.model(images.half_plane).eval()
    seconds = []
    with torch.no_grad():
        for _ in range(args.repeats):
            began = time.perf_counter()
            model.encoder(images.image_ft)
            seconds.append(time.perf_counter() - began)
    rates = len(images) / np.array(seconds[1:])
    print(f"encoder, {args.threads} threads: {np.median(rates):,.0f} particles/s (fastest {rates.max():,.0f})")
    began = time.perf_counter()
    predictor.predict(particles)
    print(f"predict: {len(particles) / (time.perf_counter() - began):,.0f} particles/s from {particles.box} px images on disk")


if __name__ == "__main__":
    main()
