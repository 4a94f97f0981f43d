//! The gateway: OpenAI's HTTP in, jobs on the bus out, and the jobs' frames back as the answer.
//!
//! What may enter: HTTP, the shape of answers and errors, and the promise that each client hears its job's
//! output once, in order and to an explicit end. What may not: placement, engines, or the content of prompts and
//! answers anywhere but in the bytes that are passed on.

mod answer;
mod catalog;
mod client;
mod demux;
mod error;
mod events;
mod fields;
mod fleet;
mod infer;
mod intake;
mod lanes;
mod leases;
mod models;
mod offers;
mod relay;
mod request;
mod respond;
mod send;
mod server;
mod status;
mod stream;
mod worker;

pub use server::{GatewayError, RenderMetrics, run};
