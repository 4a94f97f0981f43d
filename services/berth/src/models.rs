//! `berth models`: the catalog as it stands.

use berth_config::show_bytes;
use berth_wire::{AdapterView, EngineRecord, ModelView, OperateReply, OperateRequest};
use clap::Args;
use serde_json::json;

use crate::cli::FleetArgs;
use crate::exit::{Exit, Failure};
use crate::{ask, lease, status, table};

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
            OperateReply::Models(mut models) => {
                let engines = status::entries::<EngineRecord>(bus, "engines").await?;
                for model in &mut models {
                    model.note_adapters(engines.values().map(AsRef::as_ref));
                }
                Ok(models)
            }
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
    let rows: Vec<Vec<String>> = models.iter().flat_map(rows).collect();
    let headings = [
        "MODEL", "ENGINE", "STATE", "WHERE", "MEMORY", "MEASURED", "CONTEXT", "SLOTS", "WAITING", "ALIASES",
        "",
    ];
    table::render(&headings, &rows)
}

/// A model, and below it its adapters.
fn rows(model: &ModelView) -> Vec<Vec<String>> {
    let adapters = model.adapters.iter().map(adapter);
    std::iter::once(row(model)).chain(adapters).collect()
}

fn adapter(adapter: &AdapterView) -> Vec<String> {
    let engines: Vec<String> = adapter.engines.iter().map(ToString::to_string).collect();
    let (state, note) = match engines.is_empty() {
        true => ("not loaded", String::new()),
        false => ("loaded", format!("by {}", engines.join(", "))),
    };
    let aliases = if adapter.aliases.is_empty() { "-".into() } else { adapter.aliases.join(", ") };
    let mut row = vec![format!("+ {}", adapter.model), "adapter".into(), state.into()];
    row.extend(["-", "-", "-", "-", "-", "-"].map(str::to_owned));
    row.extend([aliases, note]);
    row
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
        notes.push(in_a_line(error));
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

/// What went wrong, and of the log that it tells the last line.
fn in_a_line(error: &str) -> String {
    let mut lines = error.lines();
    let first = lines.next().unwrap_or_default();
    lines.next_back().map_or_else(|| first.into(), |last| format!("{first} {last}"))
}
