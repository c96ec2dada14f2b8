"""Landing to silver: typing, quarantine, deduplication, validity."""
