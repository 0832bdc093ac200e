"""What one rank does. Nothing here knows the scheduler or the tracker."""
