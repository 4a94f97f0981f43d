//! Who may do what on the bus: one table, from which the configuration of nats-server is written.
//!
//! A new subject wants three things: its builder in `berth_wire::Subjects`, a row in `table.rs` for each side that says or
//! hears it (a new [`berth_wire::Verb`] does not compile without), and the table of `docs/fleet-security.md`, which a test
//! compares with this one. What is missing shows as a denial in the test of a fleet under permissions.

mod conf;
mod denied;
mod identity;
mod rights;
mod table;

pub use conf::{KeyOf, authorization};
pub use denied::Denial;
pub(crate) use denied::Denials;
pub use identity::Identity;
pub use rights::{Permissions, Right};
pub use table::{permissions, rights, table};
