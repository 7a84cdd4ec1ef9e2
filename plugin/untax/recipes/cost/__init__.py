"""What a training needs before it is started: GPU memory, hours and disk, by arithmetic alone."""
