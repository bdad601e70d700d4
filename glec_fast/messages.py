from glec_fast._payload import Alert, GpsFix, Inference, Status, Telemetry
__all__=["Alert","GpsFix","Inference","Status","Telemetry"]
