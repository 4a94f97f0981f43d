//! NATS as Berth uses it: connect, declare, request, elect, keep views of KV, and carry output streams.
//!
//! What may enter: transport, and the limits and quirks of NATS. What may not: decisions, HTTP, what a message
//! means. Every payload is checked against the server's limit before it is sent.

mod assets;
mod bodies;
mod connect;
mod consume;
mod election;
mod error;
mod message;
mod output;
pub mod permit;
pub mod server;
mod service;
mod story;
mod view;

pub use assets::{AssetError, provision, repair};
pub use bodies::Bodies;
pub use connect::{Bus, BusOptions, slow_consumers};
pub use consume::{Jobs, QueuedJob, Ticket};
pub use election::{Election, Leadership, forget_leader, outrun};
pub use error::BusError;
pub use message::{Inbound, dispatch_headers, read, read_as, read_dispatch_headers, read_offer_headers};
pub use output::{Delivery, NatsOutput, NatsOutputSource, OutputSink, OutputSource};
pub use service::{MACHINE, Registered, register};
pub use story::{Since, Story};
pub use view::{Entries, View, amend_json, create_json, delete_key, get_json, put_json, watch_json};

pub use async_nats::{HeaderMap, Subscriber};
