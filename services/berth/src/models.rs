//! `berth models`: the catalog as it stands.

use berth_config::show_bytes;
use berth_wire::{ModelView, OperateReply, OperateRequest};
use clap::Args;
use serde_json::json;

use crate::cli::FleetArgs;
use crate::exit::{Exit, Failure};
use crate::{ask, lease, table};

pub(crate) const EXAMPLES: &str = "\
MEMORY is what is set aside: what the configuration says, else an estimate by the model's files (~); MEASURED is the
most that its engine was seen to take.

Examples:
  berth models
  berth models --json | jq '.models[] | select(.waiting > 0).model'
  berth load demo              start one
  berth apply fleet.toml       change the catalog of a running fleet";

/// Options of `models`.
#[derive(Debug, Args)]
pub(crate) struct ModelsArgs {
    #[command(flatten)]
    fleet: FleetArgs,
    /// One JSON object instead of a table, as `GET /api/v1/models` gives it.
    #[arg(long)]
    json: bool,
}

/// `berth models`
pub(crate) fn run(args: &ModelsArgs) -> Result<Exit, Failure> {
    let models =
        lease::at_fleet(&args.fleet, async |bus| match ask::leader(bus, &OperateRequest::Models).await? {
            OperateReply::Models(models) => Ok(models),
            _ => Err(ask::unexpected()),
        })?;
    if args.json {
        outln!("{}", json!({ "models": models }));
    } else if models.is_empty() {
        outln!("the catalog is empty; `berth apply FILE` fills it");
    } else {
        out!("{}", text(&models));
    }
    Ok(Exit::Done)
}

fn text(models: &[ModelView]) -> String {
    let rows: Vec<Vec<String>> = models.iter().map(row).collect();
    let headings = [
        "MODEL", "ENGINE", "STATE", "WHERE", "MEMORY", "MEASURED", "CONTEXT", "SLOTS", "WAITING", "ALIASES",
        "",
    ];
    table::render(&headings, &rows)
}

fn row(model: &ModelView) -> Vec<String> {
    let or_dash = |text: Option<String>| text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".into());
    let hosts: Vec<&str> = model.hosts.iter().map(|host| host.as_str()).collect();
    let memory =
        model.memory.map(show_bytes).or_else(|| model.estimated.map(|b| format!("~{}", show_bytes(b))));
    let mut notes = Vec::new();
    if model.pinned {
        notes.push("pinned".to_owned());
    }
    if model.asked_for {
        notes.push("asked for".into());
    }
    if let Some(error) = &model.error {
        notes.push(error.lines().next().unwrap_or_default().into());
    }
    vec![
        model.model.to_string(),
        model.engine.clone(),
        model.state.clone(),
        or_dash(Some(hosts.join(", "))),
        memory.unwrap_or_else(|| "all of it".into()),
        or_dash(model.measured.map(show_bytes)),
        or_dash(model.context.map(|tokens| tokens.to_string())),
        format!("{}/{}", model.running, model.concurrency),
        model.waiting.to_string(),
        or_dash(Some(model.aliases.join(", "))),
        notes.join("; "),
    ]
}
