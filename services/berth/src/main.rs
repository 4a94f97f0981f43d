//! The one binary. It reads the command line and the configuration, starts the roles, and says in words what
//! happened.
//!
//! What may enter: what a person types and reads. What may not: the work of a role; each is a library with `run`.

#[macro_use]
mod out;

mod add;
mod apply;
mod ask;
mod bar;
mod chat;
mod check;
mod cli;
mod drain;
mod events;
mod exit;
mod explain;
mod files;
mod health;
mod healthcheck;
mod hint;
mod identify;
mod input;
mod key;
mod lease;
mod load;
mod logs;
mod models;
mod nats;
mod pages;
mod queue;
mod replay;
mod role;
mod setup;
mod signals;
mod sim;
mod simulate;
mod status;
mod table;
mod translate;
mod up;

use std::process::ExitCode;

use berth_telemetry::Chain;
use clap::Parser;

use crate::cli::{Cli, Command};
use crate::exit::{Exit, Failure};
use crate::role::Role;

fn main() -> ExitCode {
    let cli = Cli::parse();
    files::raise_limit();
    match run(cli) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            eprintln!("error: {}", Chain(&failure));
            failure.exit().into()
        }
    }
}

fn run(cli: Cli) -> Result<Exit, Failure> {
    let logs = cli.log.as_deref();
    match cli.command {
        // A person reads along: the story in its own words, and only what is wrong from the log.
        Command::Up(args) => setup::logs(logs, "warn").and_then(|()| up::run(&args)),
        Command::Gateway(args) => setup::logs(logs, "info").and_then(|()| role::run(Role::Gateway, &args)),
        Command::Scheduler(args) => {
            setup::logs(logs, "info").and_then(|()| role::run(Role::Scheduler, &args))
        }
        Command::Agent(args) => setup::logs(logs, "info").and_then(|()| role::run(Role::Agent, &args)),
        Command::Health(args) => match args.what {
            None => setup::logs(logs, "info").and_then(|()| role::run(Role::Health, &args.role)),
            Some(health::What::Report(args)) => {
                setup::logs(logs, "error").and_then(|()| health::report(&args))
            }
        },
        Command::Status(args) => setup::logs(logs, "error").and_then(|()| status::run(&args)),
        Command::Top(args) => setup::logs(logs, "error").and_then(|()| status::top(&args.fleet)),
        Command::Chat(args) => setup::logs(logs, "error").and_then(|()| chat::run(&args)),
        Command::Completions(args) => Ok(pages::completions(&args)),
        Command::Man(args) => pages::man(&args),
        Command::Lease(args) => setup::logs(logs, "error").and_then(|()| lease::grant(&args)),
        Command::Release(args) => setup::logs(logs, "error").and_then(|()| lease::release(&args)),
        Command::Leases(args) => setup::logs(logs, "error").and_then(|()| lease::list(&args)),
        Command::Apply(args) => setup::logs(logs, "error").and_then(|()| apply::run(&args)),
        Command::Models(args) => setup::logs(logs, "error").and_then(|()| models::run(&args)),
        Command::Queue(args) => setup::logs(logs, "error").and_then(|()| queue::run(&args, true)),
        Command::Jobs(args) => setup::logs(logs, "error").and_then(|()| queue::run(&args, false)),
        Command::Explain(args) => setup::logs(logs, "error").and_then(|()| explain::run(&args)),
        Command::Load(args) => setup::logs(logs, "error").and_then(|()| load::load(&args)),
        Command::Unload(args) => setup::logs(logs, "error").and_then(|()| load::unload(&args)),
        Command::Pin(args) => setup::logs(logs, "error").and_then(|()| load::pin(&args, true)),
        Command::Unpin(args) => setup::logs(logs, "error").and_then(|()| load::pin(&args, false)),
        Command::Hint(args) => setup::logs(logs, "error").and_then(|()| hint::run(&args)),
        Command::Hints(args) => setup::logs(logs, "error").and_then(|()| hint::list(&args)),
        Command::Events(args) => setup::logs(logs, "error").and_then(|()| events::run(&args)),
        Command::Drain(args) => setup::logs(logs, "error").and_then(|()| drain::drain(&args)),
        Command::Undrain(args) => setup::logs(logs, "error").and_then(|()| drain::undrain(&args)),
        Command::Key(args) => setup::logs(logs, "error").and_then(|()| key::run(args)),
        Command::Logs(args) => setup::logs(logs, "error").and_then(|()| crate::logs::run(&args)),
        Command::Healthcheck(args) => setup::logs(logs, "off").and_then(|()| healthcheck::run(&args)),
        Command::Nats(args) => nats::run(args),
        Command::Check(args) => check::run(&args),
        Command::Add(args) => add::run(&args),
        Command::Translate { .. } => translate::run(),
        Command::Simulate(args) => simulate::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::SimEngine(args) => sim::run(args),
    }
}
