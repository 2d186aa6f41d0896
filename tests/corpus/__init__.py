"""Files as people report them in the issue trackers of this field, and what the check has to say of each."""
