"""Blobs: images, audio and files of users and of tools, kept beside the state store."""
