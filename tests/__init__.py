"""The tests, in the rooms of the code; `support` has what they share."""
