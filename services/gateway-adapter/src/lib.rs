//! The gateway: OpenAI's HTTP in, jobs on the bus out, and the jobs' frames back as the answer.
//!
//! What may enter: HTTP, the shape of answers and errors, and the promise that each client hears its job's
//! output once, in order and to an explicit end. What may not: placement, engines, or the content of prompts and
//! answers anywhere but in the bytes that are passed on.

mod about;
mod adopt;
mod allowance;
mod answer;
mod anthropic;
mod bucket;
mod caller;
mod catalog;
mod client;
mod course;
mod demux;
mod engine_errors;
mod error;
mod events;
mod fields;
mod fleet;
mod flow;
mod form;
mod infer;
mod intake;
mod jobs;
mod keys;
mod knocks;
mod lanes;
mod later;
mod leader;
mod leases;
mod ledger;
mod meters;
mod models;
mod names;
mod offers;
mod openapi;
mod operate;
mod patience;
mod pursuit;
mod relay;
mod request;
mod respond;
mod roll;
mod send;
mod server;
mod shapes;
mod shelf;
mod spans;
mod status;
mod stream;
mod strip;
mod troubles;
mod upstream;
mod worker;

pub use server::{GatewayError, RenderMetrics, run};
