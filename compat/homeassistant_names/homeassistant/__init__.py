"""In the place of homeassistant, with its hundred dependencies: what mqtt-hass-base takes of it are these names."""
