//! Real nats-server harness, fault proxy and the engine simulator.
