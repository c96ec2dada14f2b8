"""SQL that ships with Nightjar: checks and views."""
