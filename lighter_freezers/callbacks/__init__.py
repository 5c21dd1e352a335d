"""Callbacks for the Trainers of both Lightning namespaces."""
