"""Pictures of slopes and records that were computed elsewhere: nothing is fitted here."""
