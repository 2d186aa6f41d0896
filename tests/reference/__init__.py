"""Numbers of other programs, made once and kept with how they were made; the tests compare ours with them."""
