//! `berth hint` and `berth hints`: what sessions will need soon.

use std::time::Duration;

use berth_wire::{
    HintShown, HintView, LeaseReply, LeaseRequest, ModelId, OperateReply, OperateRequest, SessionId,
};
use clap::Args;
use serde_json::json;

use crate::ask::span;
use crate::cli::FleetArgs;
use crate::exit::{Exit, Failure};
use crate::{ask, lease, table};

pub(crate) const HINT_EXAMPLES: &str = "\
A model that is said to be needed is loaded ahead of time where that costs others less than it spares. The same session
and model said again replaces what was said before; a request of the session for the model ends the hint.

Examples:
  berth hint my-session demo --in 30s
  berth hint my-session demo --in 5m          it takes longer after all
  berth hint my-session demo --withdraw       it will not be needed
  berth hints                                 what was said";

pub(crate) const HINTS_EXAMPLES: &str = "\
Examples:
  berth hints
  berth hints --session my-session
  berth hints --json";

/// Options of `hint`.
#[derive(Debug, Args)]
pub(crate) struct HintArgs {
    /// The session's key: any text of up to 256 bytes.
    #[arg(value_parser = lease::session)]
    session: SessionId,
    /// The model, or an alias of it; left out with --withdraw: all that the session has hinted.
    #[arg(required_unless_present = "withdraw")]
    model: Option<String>,
    /// When it will be needed.
    #[arg(long = "in", value_name = "TIME", value_parser = berth_config::parse_duration, required_unless_present = "withdraw")]
    lead: Option<Duration>,
    /// Take the hint back.
    #[arg(long, conflicts_with = "lead")]
    withdraw: bool,
    #[command(flatten)]
    fleet: FleetArgs,
    /// One JSON object instead of a sentence.
    #[arg(long)]
    json: bool,
}

/// Options of `hints`.
#[derive(Debug, Args)]
pub(crate) struct HintsArgs {
    /// Only this session's.
    #[arg(long, value_name = "SESSION", value_parser = lease::session)]
    session: Option<SessionId>,
    #[command(flatten)]
    fleet: FleetArgs,
    /// One JSON object instead of a table, as `GET /api/v1/hints` gives it.
    #[arg(long)]
    json: bool,
}

/// `berth hint`
pub(crate) fn run(args: &HintArgs) -> Result<Exit, Failure> {
    lease::at_fleet(&args.fleet, async |bus| {
        let model = match &args.model {
            Some(name) => Some(lease::resolve(bus, name).await?),
            None => None,
        };
        let session = args.session.clone();
        match (model, args.lead) {
            (Some(model), Some(lead)) => {
                let ask =
                    LeaseRequest::Hint { session: session.clone(), model: model.clone(), lead, key: None };
                let LeaseReply::Noted = lease::ask(bus, &ask).await? else { return Err(ask::unexpected()) };
                if args.json {
                    outln!("{}", ask::json(&HintShown::new(session, model, lead))?);
                } else {
                    outln!("noted: {} in {}", table::plain(model.as_str()), span(lead.as_secs_f64()));
                }
            }
            (model, _) => {
                let ask = OperateRequest::Withdraw { session, model, key: None };
                let OperateReply::Withdrawn { models } = ask::leader(bus, &ask).await? else {
                    return Err(ask::unexpected());
                };
                if args.json {
                    outln!("{}", json!({ "withdrawn": models }));
                } else if models.is_empty() {
                    outln!("nothing to withdraw: the session has given no such hint, or it has come true");
                } else {
                    let names: Vec<&str> = models.iter().map(ModelId::as_str).collect();
                    outln!("withdrawn: {}", table::plain(&names.join(", ")));
                }
            }
        }
        Ok(Exit::Done)
    })
}

/// `berth hints`
pub(crate) fn list(args: &HintsArgs) -> Result<Exit, Failure> {
    let ask = OperateRequest::Hints { session: args.session.clone(), key: None };
    let reply = lease::at_fleet(&args.fleet, async |bus| ask::leader(bus, &ask).await)?;
    let OperateReply::Hints(hints) = reply else { return Err(ask::unexpected()) };
    if args.json {
        outln!("{}", json!({ "hints": hints }));
    } else if hints.is_empty() {
        outln!("no session has said what it will need; `berth hint SESSION MODEL --in 30s` does");
    } else {
        let row = |hint: &HintView| {
            let due = if hint.due_s > 0.0 { span(hint.due_s) } else { "due".into() };
            vec![hint.session.to_string(), hint.model.to_string(), due]
        };
        let rows: Vec<Vec<String>> = hints.iter().map(row).collect();
        out!("{}", table::render(&["SESSION", "MODEL", "NEEDED IN"], &rows));
    }
    Ok(Exit::Done)
}
