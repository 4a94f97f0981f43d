//! `berth queue` and `berth jobs`: what waits and what runs.

use berth_bus::Bus;
use berth_wire::{JobView, OperateReply, OperateRequest};
use clap::Args;
use serde_json::json;

use crate::ask::{self, span};
use crate::cli::FleetArgs;
use crate::exit::{Exit, Failure};
use crate::{lease, table};

pub(crate) const QUEUE_EXAMPLES: &str = "\
A request for which a slot is free takes it at once and never waits here. Of one model the first is at position 0.

Examples:
  berth queue
  berth queue --watch
  berth queue --json | jq '.jobs[] | {job, why}'
  berth explain JOB            everything about one of them";

pub(crate) const JOBS_EXAMPLES: &str = "\
Examples:
  berth jobs                   what waits, then what runs
  berth jobs --watch           and again whenever it changes, until Ctrl-C
  berth jobs --json --watch    one JSON object a line";

/// Options of `queue` and `jobs`.
#[derive(Debug, Args)]
pub(crate) struct JobsArgs {
    /// Show it again whenever it changes, until Ctrl-C.
    #[arg(long, short)]
    watch: bool,
    /// At most so many jobs.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    #[command(flatten)]
    fleet: FleetArgs,
    /// One JSON object instead of a table, as `GET /api/v1/jobs` gives it.
    #[arg(long)]
    json: bool,
}

/// Only those that wait, or all.
pub(crate) fn run(args: &JobsArgs, waiting: bool) -> Result<Exit, Failure> {
    lease::at_fleet(&args.fleet, async |bus| {
        if args.watch {
            ask::watch(!args.json, async || picture(bus, args, waiting).await).await?;
        } else {
            out!("{}", picture(bus, args, waiting).await?);
        }
        Ok(Exit::Done)
    })
}

async fn picture(bus: &Bus, args: &JobsArgs, waiting: bool) -> Result<String, Failure> {
    let ask = OperateRequest::Jobs { waiting, limit: args.limit, key: None };
    let OperateReply::Jobs { jobs, total } = ask::leader(bus, &ask).await? else {
        return Err(ask::unexpected());
    };
    if args.json {
        return Ok(format!("{}\n", json!({ "jobs": jobs, "total": total })));
    }
    if jobs.is_empty() {
        return Ok(if waiting { "nothing waits\n" } else { "nothing waits and nothing runs\n" }.into());
    }
    let mut text = if waiting { queue(&jobs) } else { all(&jobs) };
    let more = total.saturating_sub(jobs.len() as u64);
    if more > 0 {
        text.push_str(&format!("and {more} more; --limit shows them\n"));
    }
    Ok(text)
}

fn dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".into())
}

fn queue(jobs: &[JobView]) -> String {
    let row = |job: &JobView| {
        vec![
            dash(job.position.map(|position| position.to_string())),
            job.job.to_string(),
            job.model.to_string(),
            job.class.as_str().into(),
            dash(job.session.as_ref().map(ToString::to_string)),
            span(job.age_s),
            job.eta_s.map_or_else(|| "?".into(), span),
            dash(job.why.clone()),
        ]
    };
    let rows: Vec<Vec<String>> = jobs.iter().map(row).collect();
    table::render(&["POSITION", "JOB", "MODEL", "CLASS", "SESSION", "AGE", "STARTS IN", "WHY"], &rows)
}

/// Waiting and running ones.
pub(crate) fn all(jobs: &[JobView]) -> String {
    let row = |job: &JobView| {
        let place = job.engine.zip(job.host.as_ref()).map(|(engine, host)| format!("{engine} on {host}"));
        vec![
            job.job.to_string(),
            job.model.to_string(),
            job.position.filter(|_| !job.running).map_or_else(|| "runs".into(), |n| format!("waits ({n})")),
            job.class.as_str().into(),
            dash(job.session.as_ref().map(ToString::to_string)),
            span(job.age_s),
            if job.running { "-".into() } else { job.eta_s.map_or_else(|| "?".into(), span) },
            dash(place),
            job.attempts.to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = jobs.iter().map(row).collect();
    table::render(
        &["JOB", "MODEL", "STATE", "CLASS", "SESSION", "AGE", "STARTS IN", "WHERE", "ATTEMPTS"],
        &rows,
    )
}

#[cfg(test)]
mod tests {
    use berth_wire::{Class, JobId};

    use super::*;

    #[test]
    fn a_job_is_one_line_and_its_session_moves_no_cursor() {
        let job = JobView {
            job: JobId(7),
            model: "demo".into(),
            running: false,
            position: Some(2),
            class: Class::Batch,
            session: Some("a\u{1b}[2J".into()),
            key: None,
            age_s: 12.0,
            eta_s: None,
            why: Some("its model is being loaded".into()),
            engine: None,
            host: None,
            attempts: 0,
        };
        let text = queue(std::slice::from_ref(&job));
        assert!(text.contains("batch") && text.contains("12s") && text.ends_with("being loaded\n"), "{text}");
        assert!(!text.contains('\u{1b}') && text.lines().count() == 2, "{text}");
        assert!(all(&[job]).contains("waits (2)"));
    }
}
