"""A model's folder, examined before a weight is read: the faults for which no engine could load it. Needs no torch."""
