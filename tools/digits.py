"""Make the file of digits that the package ships from scikit-learn's: python tools/digits.py"""
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

PLACE = Path(__file__).resolve().parent.parent / "consistency_models/data_files/digits.npz"


def main():
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    if not (images == digits.images).all(): raise SystemExit("the digits are no whole numbers")
    PLACE.parent.mkdir(exist_ok=True)
    np.savez_compressed(PLACE, images=images, labels=labels)
    print(f"{PLACE}: {len(images)} digits, {PLACE.stat().st_size:,} bytes")


if __name__ == "__main__": main()
