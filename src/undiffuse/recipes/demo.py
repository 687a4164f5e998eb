"""What `undiffuse demo` trains: the digits recipe within a budget of seconds, no files asked for."""

from undiffuse.recipes.digits import RECIPE as DIGITS

RECIPE = DIGITS.model_copy(update={"name": "demo"}, deep=True)
