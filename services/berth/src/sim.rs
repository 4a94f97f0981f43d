//! `berth sim-engine`.

use berth_telemetry::Chain;
use berth_testkit::sim_engine::{self, SimOptions};

use crate::cli::SimArgs;
use crate::exit::{Exit, Failure};

/// Runs the simulator until it is told to stop.
#[expect(clippy::boxed_local, reason = "the command line holds it boxed, as its largest part")]
pub(crate) fn run(args: Box<SimArgs>) -> Result<Exit, Failure> {
    let options = SimOptions {
        host: args.host,
        port: args.port,
        id: args.id,
        concurrency: args.concurrency,
        load: args.load,
        first_token: args.first_token,
        per_token: args.per_token,
        tokens: args.tokens,
        fail_start: args.fail_start,
        crash_after_tokens: args.crash_after_tokens,
        ignore_sigterm: args.ignore_sigterm,
        workers: args.workers,
    };
    actix_rt::System::new()
        .block_on(sim_engine::run(options))
        .map(|()| Exit::Done)
        .map_err(|error| Failure::Role { role: "simulator", why: Chain(&error).to_string() })
}
