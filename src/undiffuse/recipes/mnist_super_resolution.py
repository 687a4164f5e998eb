"""MNIST from 14x14 to 28x28: the smaller picture is the condition, made from the sample itself.

undiffuse train mnist-super-resolution data.path=mnist.npz

Measured after 3,908 steps, ten minutes on two CPU cores: PSNR 27.77 dB for one sample and 30.48 dB for the mean of 8,
against 20.62 dB for bicubic enlargement (docs/results.md).
"""

from undiffuse.config import Data, Image, Named, ObjectiveSection, Recipe, Sampling, Training

RECIPE = Recipe(
    name="mnist-super-resolution",
    data=Data(source="arrays", path="mnist.npz"),
    image=Image(channels=1),
    condition={"low": Named(name="image", of="sample", factor=2, optional=False)},
    network=Named(name="unet", width=64, multipliers=[1, 2], resample="narrow", blocks=1, attention=False, patch=2),
    objective=ObjectiveSection(drop=0.0),
    training=Training(minutes=10, batch_size=64, learning_rate=1e-3, warmup=50),
    sampling=Sampling(steps=20, guidance=1.0),
)
