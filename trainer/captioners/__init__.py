"""Captions from models a person has on disk, from a tagger, or from an endpoint; nothing is downloaded."""
