"""Classes of binary sensors."""

BinarySensorDeviceClass = ("battery", "cold", "connectivity", "door", "heat", "light", "motion", "power", "window")
