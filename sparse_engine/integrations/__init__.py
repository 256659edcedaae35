"""Topology updates in trainers of other people, each of which is imported only where it is used."""
