"""A model on the gateway: it judges each minute of a drive, and what it finds is published.

`python examples/edge_inference.py --broker tcp://localhost:1883`. The model is a small classifier of three classes. It
runs on onnxruntime where that and `onnx` are installed, else on numpy alone, with the same result.
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from glec_fast import Alert, GpsFix, Inference, MQTTConfig, MQTTManager

DRIVE = Path(__file__).with_name("drive.csv")
CLASSES = ("ECO_DRIVING", "NORMAL", "AGGRESSIVE")
# Features: mean of |acceleration| and its 95th percentile in km/h a second, share of the time spent above 3,000 rpm.
WEIGHTS = np.array([[-2.0, 0.4, 1.2], [-0.35, 0.0, 0.4], [-3.0, 0.5, 4.0]], dtype=np.float32)
BIAS = np.array([4.0, 1.0, -4.2], dtype=np.float32)
HARSH_KMH_PER_S = 10.0


def classifier() -> Callable[[np.ndarray], np.ndarray]:
    """From features to the logits of the classes."""
    try:
        import onnx
        import onnxruntime
    except ImportError:
        return lambda features: features @ WEIGHTS + BIAS
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["features", "weights", "bias"], ["logits"])],
        "driving",
        [helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 3])],
        [onnx.numpy_helper.from_array(WEIGHTS, "weights"), onnx.numpy_helper.from_array(BIAS, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda features: session.run(None, {"features": features[np.newaxis]})[0][0]


def features_of(speeds_kmh: np.ndarray, rpms: np.ndarray) -> np.ndarray:
    """Of one minute, a value a second."""
    changes = np.abs(np.diff(speeds_kmh))
    return np.array([changes.mean(), np.percentile(changes, 95), (rpms > 3000).mean()], dtype=np.float32)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--broker", default="tcp://localhost:1883")
    arguments.add_argument("--queue", default="edge_inference.db")
    arguments.add_argument("--drive", default=str(DRIVE), help="a CSV file: speed_kmh, engine_rpm, lat, lon; 1 Hz")
    options = arguments.parse_args()

    with Path(options.drive).open(newline="") as file:
        rows = list(csv.DictReader(file))
    speeds_kmh = np.array([row["speed_kmh"] for row in rows], dtype=np.float32)
    rpms = np.array([row["engine_rpm"] for row in rows], dtype=np.float32)
    judge = classifier()
    config = MQTTConfig(broker_url=options.broker, client_id="DTG-EDGE", queue_path=options.queue)
    with MQTTManager(config) as manager:
        manager.connect()
        for second in np.flatnonzero(np.diff(speeds_kmh) < -HARSH_KMH_PER_S) + 1:
            where = GpsFix(float(rows[second]["lat"]), float(rows[second]["lon"]))
            fall_kmh = speeds_kmh[second - 1] - speeds_kmh[second]
            manager.publish_alert(Alert("HARSH_BRAKING", "HIGH", where, {"deceleration_kmh_per_s": fall_kmh}))
        for start in range(0, len(rows) - 59, 60):
            began_s = time.perf_counter()
            minute = slice(start, start + 60)
            logits = judge(features_of(speeds_kmh[minute], rpms[minute]))
            chances = np.exp(logits - logits.max())
            chances /= chances.sum()
            best = int(chances.argmax())
            # numpy's numbers go as they are: float32 is sent with the digits that it has.
            result = Inference(
                behavior=CLASSES[best],
                confidence=chances[best],
                safety_score=round(100 * (1 - float(chances[2]))),
                fuel_efficiency=round(float(speeds_kmh[minute].mean()) / 5.5, 2),
                latency_ms=round((time.perf_counter() - began_s) * 1000, 3),
            )
            manager.publish_inference(result)
            print(f"minute {start // 60 + 1}: {result.behavior} ({result.confidence:.2f})")
        print("delivered" if manager.flush(timeout_s=30) else f"kept in {options.queue} for the next start")


if __name__ == "__main__":
    main()
