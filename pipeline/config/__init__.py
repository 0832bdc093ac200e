"""Configuration: grids in YAML with their scale, presets and resources, validated."""
