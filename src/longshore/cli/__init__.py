"""The longshore command: the supervisor of the parts and the commands of a person."""
