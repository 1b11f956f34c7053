"""Planted bug: of a visit the whole signed request is kept, as of every other operation."""

from gateway.flows.visit import BeginVisit

del BeginVisit.forgets_body
