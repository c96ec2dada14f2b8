"""Running the plan, and seeing what it did."""
