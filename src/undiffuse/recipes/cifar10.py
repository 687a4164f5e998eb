r"""CIFAR-10, 32x32 in colour, class-conditional, from an .npz of images and labels: hours on one GPU.

undiffuse train cifar10 data.path=cifar10.npz
undiffuse train cifar10 data.path=cifar10.npz condition.augmentation=augmentation training.minutes=1440 run=runs/long

docs/data.md says how the file is made. What was chosen, and why:

- network: the U-Net of Ho et al. (2020), 128 channels and attention at 16x16, which everyone since has started from,
  with two changes that Dhariwal & Nichol (2021, tables 2 and 3) found to help: the level scales and shifts the
  normalisation, and heads are 64 channels wide. 38.3 M parameters. Dropout 0.13 is that of Karras et al. (2022).
- schedule, prediction, weight and times: the preconditioning and the noise distribution of Karras et al. (2022,
  table 1), with which this data set was brought from FID 3.0 to 1.8 without another network.
- learning rate 1e-3 at 512 pictures a step: theirs as well. Their warm-up of 20,000 steps is 1,000 here, gradients
  being clipped, because a budget becomes a number of steps at its end.
- mirrored pictures, as all of them have. Over about a thousand epochs a network of this size learns pictures by heart;
  `condition.augmentation=augmentation`, which does not leak, is for runs that are longer than this budget.
- 10 % of the labels dropped, so that guidance can be tried; samples are unguided, as published numbers are.

On a CPU, at half the resolution with 3.9 M parameters:

undiffuse train cifar10 data.path=cifar10.npz network.width=48 network.patch=2 "network.multipliers=[1,2,2]" \
  "network.attention=[false,true,false]" network.head_width=32 network.dropout=0 training.batch_size=64 \
  training.warmup=100 training.minutes=60 training.validate_every=500 training.sample_every=1000 run=runs/cifar10-cpu

Measured on a GPU: not yet (Frechet distance of `undiffuse evaluate RUN --n 10000 --compile` by minutes of training).
Measured on two CPU cores (Intel Xeon with AMX), the line above with training.steps=800, on 25,000 of the training
images: 306 images/s, 2.8 minutes. That is the start only: `evaluate --n 1000` gives a Frechet distance of 21.0 over the
64 features of a classifier that is right on 69.9 % of the held-out images (real training images have 0.20), and 19 %
are recognised.
"""

from undiffuse.config import Data, Image, Named, ObjectiveSection, Recipe, Sampling, Training

RECIPE = Recipe(
    name="cifar10",
    data=Data(source="arrays", path="cifar10.npz"),
    image=Image(channels=3, flip="horizontal"),
    condition={"label": Named(name="label")},
    network=Named(
        name="unet",
        width=128,
        multipliers=[1, 2, 2, 2],
        blocks=2,
        attention=[False, True, False, False],
        middle_attention=True,
        head_width=64,
        dropout=0.13,
    ),
    schedule=Named(name="edm"),
    prediction=Named(name="edm"),
    objective=ObjectiveSection(weight=Named(name="edm"), times=Named(name="log-normal"), drop=0.1),
    training=Training(
        minutes=240,
        batch_size=512,
        learning_rate=1e-3,
        warmup=1000,
        log_every=100,
        validate_every=1000,
        sample_every=5000,
        checkpoint_every=2000,
    ),
    sampling=Sampling(steps=20, guidance=1.0),
)
