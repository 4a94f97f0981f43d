//! `berth healthcheck`: for whoever restarts containers and units. It asks a URL, or this machine's own instance of a
//! role, over NATS.

use std::time::Duration;

use berth_bus::permit::Identity;
use berth_bus::{Bus, MACHINE};
use berth_config::env;
use clap::Args;
use futures::StreamExt;
use serde::Deserialize;
use tokio::time::timeout;

use crate::cli::FleetArgs;
use crate::exit::{Exit, Failure};
use crate::{setup, status};

/// How long an answer may take. Docker's own limit is set above it.
const PATIENCE: Duration = Duration::from_secs(4);

/// How long the instances of a role may take to say who they are.
const INSTANCES: Duration = Duration::from_secs(2);

pub(crate) const EXAMPLES: &str = "\
Exit status 0: it answers and makes progress; 1: it does not, and why is on standard error.

Examples:
  berth healthcheck http://127.0.0.1:8421/healthz   a gateway, or `health`, by HTTP
  berth healthcheck scheduler                       the scheduler of this machine (or container), over NATS
  berth healthcheck agent                           its agent";

/// Options of `healthcheck`.
#[derive(Debug, Args)]
pub(crate) struct HealthcheckArgs {
    /// A URL, or `gateway`, `scheduler`, `agent`, `health`.
    #[arg(value_parser = target)]
    target: Target,
    #[command(flatten)]
    fleet: FleetArgs,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Url(String),
    Role(String),
}

fn target(text: &str) -> Result<Target, String> {
    match text {
        "gateway" | "scheduler" | "agent" | "health" => Ok(Target::Role(text.into())),
        _ if text.starts_with("http://") => Ok(Target::Url(text.into())),
        _ => Err("give an address that begins with http://, or gateway, scheduler, agent or health".into()),
    }
}

/// What the NATS service API says of an instance.
#[derive(Deserialize)]
struct Instance {
    #[serde(default)]
    metadata: std::collections::HashMap<String, String>,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    subject: String,
}

/// What an instance says of itself.
#[derive(Deserialize)]
struct Status {
    actors: Vec<Actor>,
}

#[derive(Deserialize)]
struct Actor {
    name: String,
    healthy: bool,
}

/// Asks, and fails with the reason.
pub(crate) fn run(args: &HealthcheckArgs) -> Result<Exit, Failure> {
    actix_rt::System::new().block_on(async {
        let asked = async {
            match &args.target {
                Target::Url(url) => fetch(url).await,
                Target::Role(role) => Box::pin(ask(role, &args.fleet)).await,
            }
        };
        match timeout(PATIENCE, asked).await {
            Ok(outcome) => outcome.map(|()| Exit::Done),
            Err(_) => Err(Failure::Input(format!("no answer within {} s", PATIENCE.as_secs()))),
        }
    })
}

async fn fetch(url: &str) -> Result<(), Failure> {
    let failed = |error: reqwest::Error| Failure::Input(format!("{url}: {}", berth_telemetry::Chain(&error)));
    let client = reqwest::Client::builder().no_proxy().build().map_err(failed)?;
    let status = client.get(url).send().await.map_err(failed)?.status();
    if status.is_success() { Ok(()) } else { Err(Failure::Input(format!("{url} answers {status}"))) }
}

async fn ask(role: &str, fleet: &FleetArgs) -> Result<(), Failure> {
    let options = status::options(fleet)?;
    let own = match role {
        "scheduler" => Identity::Scheduler,
        "gateway" => Identity::Gateway,
        "health" => Identity::Health,
        _ => Identity::Agent(setup::config(fleet.config.as_deref(), &[])?.0.host.name),
    };
    // With the key that the role itself has, else with a person's.
    let bus = Bus::connect(&options.clone().with_identity(own), "berth-healthcheck").await?;
    let (bus, subject) = match own_instance(&bus, role).await? {
        Some(subject) => (bus, subject),
        None => {
            let bus = Bus::connect(&options, "berth-healthcheck").await?;
            let subject = own_instance(&bus, role).await?;
            (bus, subject.ok_or_else(|| Failure::Input(denied(role)))?)
        }
    };
    let answer = bus.client.request(subject.clone(), Default::default()).await;
    let answer = answer.map_err(|error| Failure::Input(format!("{subject}: {error}")))?;
    bus.close().await;
    let status: Status = serde_json::from_slice(&answer.payload)
        .map_err(|error| Failure::Input(format!("the {role}'s answer is no status: {error}")))?;
    match status.actors.iter().find(|actor| !actor.healthy) {
        Some(actor) => Err(Failure::Input(format!("the {role}'s actor {} makes no progress", actor.name))),
        None => Ok(()),
    }
}

fn denied(role: &str) -> String {
    format!(
        "the NATS server does not let us ask for the {role}: name the key of the {role} itself or of the operator by \
         nkey_file under [bus], BERTH_NATS_NKEY or BERTH_NATS_NKEY_FILE"
    )
}

/// Ends when the server has denied something.
async fn refused(bus: &Bus) {
    while bus.denied().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Where this machine's instance of a role tells its status; `None` if NATS does not let us ask.
async fn own_instance(bus: &Bus, role: &str) -> Result<Option<String>, Failure> {
    let failed = |error: &dyn std::error::Error| Failure::Input(format!("cannot ask for services: {error}"));
    let inbox = bus.client.new_inbox();
    let mut answers = bus.client.subscribe(inbox.clone()).await.map_err(|error| failed(&error))?;
    let asked = format!("$SRV.INFO.berth-{role}");
    bus.client.publish_with_reply(asked, inbox, Default::default()).await.map_err(|error| failed(&error))?;
    let machine = env::machine();
    let prefix = format!("{}.status.", bus.subjects.root());
    let deadline = tokio::time::Instant::now() + INSTANCES;
    loop {
        let answer = tokio::select! {
            answer = tokio::time::timeout_at(deadline, answers.next()) => answer,
            () = refused(bus) => return Ok(None),
        };
        let Ok(Some(answer)) = answer else { break };
        // Without anybody there NATS says so by an empty answer.
        let Ok(found) = serde_json::from_slice::<Instance>(&answer.payload) else { break };
        if found.metadata.get(MACHINE) != Some(&machine) {
            continue;
        }
        if let Some(endpoint) = found.endpoints.into_iter().find(|end| end.subject.starts_with(&prefix)) {
            return Ok(Some(endpoint.subject));
        }
    }
    Err(Failure::Input(format!("no {role} on this machine ({machine}) has answered on NATS")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_a_url_nor_a_role_is_refused() {
        assert_eq!(target("agent"), Ok(Target::Role("agent".into())));
        assert_eq!(target("http://x/healthz"), Ok(Target::Url("http://x/healthz".into())));
        assert!(target("agents").is_err() && target("https://x").is_err());
    }
}
