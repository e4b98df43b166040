"""Events, state and features: the part that training and serving share. Imports nothing else of ours."""
