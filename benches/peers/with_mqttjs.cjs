"use strict";
// MQTT.js: publish() with a callback at the acknowledgement. It has no window for MQTT 3.1.1.
// Takes the arguments of peer.py; the library's folder is in NODE_PATH.
const fs = require("node:fs");
const mqtt = require("mqtt");

const HOST = "127.0.0.1";
const TOPIC = "glec/dtg/DTG-BENCH/alerts";
const WARM_UP_TOPIC = "bench/warm-up";
const MARK_TOPIC = "bench/mark";
const PAYLOAD_BYTES = 300;
const WARM_UP_MESSAGES = 1000;

function publishAll(client, topic, payloads, qos) {
  return new Promise((resolve, reject) => {
    let remaining = payloads.length + (qos === 0 ? 1 : 0);
    const onFinished = (error) => {
      if (error) reject(error);
      remaining -= 1;
      if (remaining === 0) resolve();
    };
    for (const payload of payloads) client.publish(topic, payload, { qos }, onFinished);
    if (qos === 0) client.publish(MARK_TOPIC, "", { qos: 1 }, onFinished);
  });
}

async function main() {
  const [action, port, qosText, count, , path] = process.argv.slice(2);
  if (action !== "publish") throw new Error(`no action ${action}`);
  const qos = Number(qosText);
  const content = fs.readFileSync(path);
  const payloads = Array.from({ length: Number(count) }, (_, index) =>
    content.subarray(index * PAYLOAD_BYTES, (index + 1) * PAYLOAD_BYTES),
  );
  const client = await mqtt.connectAsync(`mqtt://${HOST}:${port}`, { protocolVersion: 4 });
  await publishAll(client, WARM_UP_TOPIC, payloads.slice(0, WARM_UP_MESSAGES), qos);
  const startNs = process.hrtime.bigint();
  const cpuStart = process.cpuUsage();
  await publishAll(client, TOPIC, payloads, qos);
  const wallS = Number(process.hrtime.bigint() - startNs) / 1e9;
  const { user, system } = process.cpuUsage(cpuStart);
  const { version } = require("mqtt/package.json");
  console.log(JSON.stringify({ version, wall_s: wallS, cpu_s: (user + system) / 1e6 }));
  await client.endAsync();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
