//! Connect, declare, request, elect, and the output stream transport over NATS.
