//! The nats-server that Berth runs itself.
