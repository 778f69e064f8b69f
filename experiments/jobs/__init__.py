"""A config becomes work for `population.fit`, for every program; and the work is done."""
