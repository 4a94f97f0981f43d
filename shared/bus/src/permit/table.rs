//! The table: what each role may do, and nothing else.

use std::fmt::Write;

use berth_wire::{Subjects, Verb};

use super::identity::Identity;
use super::rights::{Permissions, Right};
use Right::{
    Fetch, Follow, Hear, Lead, LookAround, Provision, ReadFacts, Say, Serve, Store, ViewJobs, Write as Put,
};

/// Stands for an agent's own host in the table.
const OWN: &str = "<host>";

/// Who may send a host this.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sender {
    Scheduler,
    Gateway,
    Operator,
}

/// Whom a host hears this from. What starts, stops or moves engines is the scheduler's alone.
fn senders(verb: Verb) -> &'static [Sender] {
    match verb {
        Verb::Dispatch | Verb::Start | Verb::Stop | Verb::Sleep | Verb::Wake | Verb::Lane | Verb::Status => {
            &[Sender::Scheduler]
        }
        Verb::Cancel => &[Sender::Scheduler, Sender::Gateway],
        Verb::Credit | Verb::Offer | Verb::Roll => &[Sender::Gateway],
        Verb::Logs => &[Sender::Operator],
    }
}

fn commands(subjects: &Subjects, sender: Sender) -> Vec<Right> {
    let theirs = Verb::ALL.into_iter().filter(|verb| senders(*verb).contains(&sender));
    theirs.map(|verb| Say(subjects.ctl(&"*".into(), verb))).collect()
}

/// What `identity` may do.
#[must_use]
pub fn rights(identity: &Identity, subjects: &Subjects) -> Vec<Right> {
    let any = |subject: &str| format!("{}.{subject}", subjects.root());
    let mut rights = match identity {
        Identity::Scheduler => vec![
            Provision,
            Lead,
            Hear(subjects.cancel_all()),
            Hear(subjects.report_all()),
            Hear(subjects.scheduler_status()),
            Hear(subjects.lease()),
            Hear(subjects.operate()),
            Hear(subjects.drain()),
            Hear(subjects.scheduler_roll()),
            Say(any("out.*.*")),
            Say(subjects.event_all()),
            Follow("catalog"),
            Put("catalog", ">".into()),
            Follow("policy"),
            Put("policy", ">".into()),
            Follow("drains"),
            Put("drains", ">".into()),
            Follow("hosts"),
            Follow("engines"),
            Follow("leader"),
            Put("leader", "leader".into()),
            Follow("leases"),
            Put("leases", ">".into()),
            Follow("profiles"),
            Put("profiles", ">".into()),
            Hear(subjects.status("scheduler", "*")),
            Serve("berth-scheduler"),
            Say("$SRV.INFO.berth-scheduler".into()),
            Say(subjects.status("scheduler", "*")),
        ],
        Identity::Gateway => vec![
            Hear(any("out.*.*")),
            Say(any("job.submit.*")),
            Say(subjects.cancel_all()),
            Hear(subjects.cancel_all()),
            Say(subjects.lease()),
            Say(subjects.scheduler_roll()),
            Say(subjects.operate()),
            ReadFacts,
            Follow("catalog"),
            Follow("hosts"),
            Follow("engines"),
            Follow("leader"),
            Follow("keys"),
            Follow("async_jobs"),
            Put("async_jobs", ">".into()),
            Store("bodies"),
            Store("results"),
            Hear(subjects.status("gateway", "*")),
            Serve("berth-gateway"),
            Say("$SRV.INFO.berth-gateway".into()),
            Say(subjects.status("gateway", "*")),
        ],
        Identity::Agent(host) => vec![
            Hear(subjects.ctl_all(host)),
            Say(any("out.*.*")),
            Say(subjects.report(host)),
            Say(subjects.tail(host, "*")),
            Follow("catalog"),
            Follow("leases"),
            Put("hosts", host.to_string()),
            Follow("engines"),
            Put("engines", format!("{host}.>")),
            Fetch("bodies"),
            Hear(subjects.status("agent", host.as_str())),
            Serve("berth-agent"),
            Say("$SRV.INFO.berth-agent".into()),
            Say(subjects.status("agent", host.as_str())),
        ],
        Identity::Health => vec![
            Follow("leader"),
            Follow("hosts"),
            Follow("engines"),
            Follow("trends"),
            Put("trends", ">".into()),
            ReadFacts,
            Say("$SRV.INFO".into()),
            Say(subjects.status("*", "*")),
            Say("$JS.API.STREAM.LIST".into()),
            Say(any("evt.alert.*")),
            Hear(subjects.status("health", "*")),
            Serve("berth-health"),
            Say("$SRV.INFO.berth-health".into()),
        ],
        Identity::Operator => vec![
            LookAround,
            Hear(any(">")),
            Say(subjects.lease()),
            Say(subjects.operate()),
            Say(subjects.drain()),
            Say(subjects.scheduler_status()),
            Say(subjects.status("*", "*")),
            Follow("catalog"),
            Put("catalog", ">".into()),
            Follow("policy"),
            Put("policy", ">".into()),
            Say(any("evt.catalog.*")),
            Follow("hosts"),
            Follow("engines"),
            Follow("leader"),
            Follow("leases"),
            Follow("drains"),
            Follow("trends"),
            Follow("profiles"),
            Follow("async_jobs"),
            Follow("keys"),
            Put("keys", ">".into()),
            ViewJobs,
            ReadFacts,
        ],
    };
    rights.extend(match identity {
        Identity::Scheduler => commands(subjects, Sender::Scheduler),
        Identity::Gateway => commands(subjects, Sender::Gateway),
        Identity::Operator => commands(subjects, Sender::Operator),
        Identity::Agent(_) | Identity::Health => Vec::new(),
    });
    rights
}

/// The same in subjects of NATS, its own inbox included.
#[must_use]
pub fn permissions(identity: &Identity, subjects: &Subjects) -> Permissions {
    let mut permissions = Permissions::default();
    let inbox = format!("{}.>", identity.inbox(subjects));
    // A subscription that stands is told by a message to oneself.
    permissions.publish.push(inbox.clone());
    permissions.subscribe.push(inbox);
    for right in rights(identity, subjects) {
        permissions.add(&right, subjects);
    }
    permissions.tidy()
}

/// The table as the documentation shows it.
#[must_use]
pub fn table() -> String {
    let subjects = Subjects::default();
    let mut text = String::from("| role | may |\n|---|---|\n");
    for identity in [
        Identity::Scheduler,
        Identity::Gateway,
        Identity::Agent(OWN.into()),
        Identity::Health,
        Identity::Operator,
    ] {
        let may: Vec<String> =
            rights(&identity, &subjects).iter().map(|right| right.told(&subjects)).collect();
        let name = match &identity {
            Identity::Agent(_) => "agent of `<host>`".to_owned(),
            other => other.name(),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {name} | {} |", may.join("; "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_scheduler_moves_engines_and_makes_streams() {
        let subjects = Subjects::default();
        let agent = Identity::Agent("h".into());
        for other in [&Identity::Gateway, &Identity::Health, &Identity::Operator, &agent] {
            let may = permissions(other, &subjects);
            for verb in [Verb::Start, Verb::Stop, Verb::Sleep, Verb::Wake, Verb::Dispatch, Verb::Lane] {
                assert!(!may.may_publish(&subjects.ctl(&"h".into(), verb)), "{other:?} {verb:?}");
            }
            for verb in ["CREATE", "UPDATE", "DELETE"] {
                assert!(!may.may_publish(&format!("$JS.API.STREAM.{verb}.BERTH_JOBS")), "{other:?}");
            }
        }
    }

    #[test]
    fn replies_to_one_role_are_heard_by_no_other() {
        let subjects = Subjects::default();
        let mut all = Identity::ROLES.to_vec();
        all.extend([Identity::Agent("h".into()), Identity::Agent("i".into())]);
        for mine in &all {
            for other in all.iter().filter(|other| *other != mine) {
                let may = permissions(other, &subjects);
                let inbox = format!("{}.x.y", mine.inbox(&subjects));
                assert!(!may.may_subscribe(&inbox) && !may.may_publish(&inbox), "{other:?} and {mine:?}");
            }
        }
    }

    #[test]
    fn the_documentation_shows_this_table() {
        let page = include_str!("../../../../docs/fleet-security.md");
        assert!(page.contains(&table()), "docs/fleet-security.md lacks the table as it is:\n{}", table());
    }
}
