"""What training and serving both compute with."""
