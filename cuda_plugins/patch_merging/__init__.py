"""Gathers 2x2 neighbours of a feature map into tokens and normalises them, in one pass over memory."""
