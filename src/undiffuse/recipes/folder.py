"""A folder of images of any sizes, labels from its sub-folders or none.

undiffuse train folder data.path=photos image.size=64 condition=label
"""

from undiffuse.config import Data, Image, Named, ObjectiveSection, Recipe, Sampling, Training

RECIPE = Recipe(
    name="folder",
    data=Data(source="folder", path="images"),
    image=Image(size=64, channels=3, crop="center", flip="horizontal"),
    network=Named(
        name="unet",
        width=64,
        multipliers=[1, 2, 4],
        resample="narrow",
        blocks=2,
        attention=[False, False, True],
        patch=2,
    ),
    objective=ObjectiveSection(drop=0.1),
    training=Training(minutes=60, batch_size=64, learning_rate=5e-4, warmup=200),
    sampling=Sampling(steps=20, guidance=1.5),
)
