"""Pure functions without parameters: the mathematics the layers stand on."""
