//! `berth explain`: why a job waits, or what became of it.

use berth_bus::{Bus, BusError, Since};
use berth_wire::{Event, JobId, JobWhy, OperateReply, OperateRequest, PlaceView};
use clap::Args;
use serde_json::json;

use crate::ask::span;
use crate::cli::FleetArgs;
use crate::exit::{Exit, Failure};
use crate::{ask, events, lease, table};

pub(crate) const EXAMPLES: &str = "\
A job's id is in the header x-berth-job of its answer, in heartbeats, and in `berth jobs`.
Of a job that has ended, what was recorded is shown, for 72 hours. A job that took the express lane, because a slot was
free at once, leaves no story.

Examples:
  berth explain 019abc...
  berth explain 019abc... --json";

/// Options of `explain`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The job, as `berth jobs` names it.
    #[arg(value_parser = job)]
    job: JobId,
    #[command(flatten)]
    fleet: FleetArgs,
    /// One JSON object instead of sentences, as `GET /api/v1/explain/JOB` gives it.
    #[arg(long)]
    json: bool,
}

fn job(text: &str) -> Result<JobId, String> {
    text.parse().map_err(|error: berth_wire::IdError| error.to_string())
}

/// `berth explain`
pub(crate) fn run(args: &ExplainArgs) -> Result<Exit, Failure> {
    lease::at_fleet(&args.fleet, async |bus| {
        let ask = OperateRequest::Explain { job: args.job, key: None };
        let story = story(bus, args.job).await?;
        let now = match ask::leader(bus, &ask).await {
            Ok(OperateReply::Explained(why)) => Some(why),
            Ok(_) => return Err(ask::unexpected()),
            Err(Failure::Input(_)) if !story.is_empty() => None,
            Err(error) => return Err(error),
        };
        if args.json {
            outln!("{}", json!({ "now": now, "story": story }));
            return Ok(Exit::Done);
        }
        if let Some(why) = &now {
            out!("{}", text(why));
            outln!("");
        }
        for event in &story {
            outln!("{}", events::line(event));
        }
        Ok(Exit::Done)
    })
}

async fn story(bus: &Bus, job: JobId) -> Result<Vec<Event>, Failure> {
    let mut story = match bus.story(Since::Beginning, [bus.subjects.event("job", &job.to_string())]).await {
        Ok(story) => story,
        Err(BusError::Missing { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut events = Vec::new();
    while let Some(event) = story.past().await? {
        events.push(event);
    }
    Ok(events)
}

fn text(why: &JobWhy) -> String {
    let job = &why.job;
    let model = table::plain(job.model.as_str());
    let mut text = format!("job {} for {model}, {}, {} old\n", job.job, job.class.as_str(), span(job.age_s));
    if let Some(reason) = &job.why {
        text.push_str(&format!("{}\n", table::plain(reason)));
    }
    let Some(position) = job.position.filter(|_| !job.running) else { return text };
    let before = match position {
        0 => "it is the first of its model".to_owned(),
        1 => "1 job of its model came before it".to_owned(),
        n => format!("{n} jobs of its model came before it"),
    };
    let eta = job.eta_s.map_or_else(
        || "when it starts is not known yet".to_owned(),
        |eta| format!("it is expected to start in {}", span(eta)),
    );
    text.push_str(&format!("{before}; {eta}\n"));
    if !why.places.is_empty() {
        text.push_str(&format!(
            "\nplaces for an engine of its model, whose jobs have waited {} together (weighted):\n",
            span(why.model_waited_s)
        ));
        text.push_str(&places(&why.places));
    }
    text
}

fn places(places: &[PlaceView]) -> String {
    let row = |place: &PlaceView| {
        let on: Vec<&str> = place.accelerators.iter().map(|id| id.as_str()).collect();
        let evicts: Vec<&str> = place.evicts.iter().map(|id| id.as_str()).collect();
        vec![
            place.host.to_string(),
            on.join(", "),
            if evicts.is_empty() { "-".into() } else { evicts.join(", ") },
            span(place.loss_s),
            span(place.drain_s),
            format!("{}{}", span(place.start_s), if place.wake { " (wakes)" } else { "" }),
            span(place.cost_s),
        ]
    };
    let rows: Vec<Vec<String>> = places.iter().map(row).collect();
    table::render(&["HOST", "ON", "INSTEAD OF", "THEY LOSE", "DRAIN", "START", "COST"], &rows)
}
