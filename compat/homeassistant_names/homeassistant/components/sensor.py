"""Classes of sensors."""

SensorDeviceClass = ("battery", "current", "energy", "humidity", "power", "pressure", "temperature", "voltage")
