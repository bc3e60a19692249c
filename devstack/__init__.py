"""Kafka, Redis and PostgreSQL on this machine, started by the project itself, for development and tests."""

from devstack.service import Service, StackError
from devstack.stack import Stack, find, start

__all__ = ["Service", "Stack", "StackError", "find", "start"]
