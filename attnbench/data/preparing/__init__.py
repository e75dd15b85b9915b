"""Getting datasets: where they are downloaded from, unpacking, conversion, and checks of what is there."""
