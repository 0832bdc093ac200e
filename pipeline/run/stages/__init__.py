"""Stages of a cell, as one rank runs them; they know neither scheduler nor tracker."""
