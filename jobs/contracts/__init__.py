"""What the parts of Nightjar agree on: days, tables, the landing format, errors. Needs nothing heavier than pydantic."""
