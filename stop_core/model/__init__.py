"""STOP and the methods that it is compared with."""
