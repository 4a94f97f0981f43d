//! Offers, dispatches, drains, stops, lost agents and changes of leader in any order: the agents' gates and outboxes with
//! the scheduling core, and between them messages that are delivered when it pleases.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use berth_placement::{
    AttemptEnd, Effect, EngineFacts, Event, HostFacts, JobFacts, ModelNeeds, Policy, Refusal, State, Verdict,
    step,
};
use berth_wire::{
    Accelerator, AcceleratorKind, ApiError, Attempt, Class, Driver, Ended, EngineFailure, EngineId,
    EngineReport, EngineState, Epoch, ErrorKind, HostBeat, HostId, JobId, ModelId, Outcome, ReportAck,
    ReportEntry, Reservation, RunningAttempt, Snapshot, Started, Timestamp, Usage,
};
use proptest::prelude::*;

mod agents;
mod gateway;
mod leader;
mod reports;
mod settle;
mod world;

use world::*;

use super::{Gate, No};
use crate::outbox::{Batch, Outbox};

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_crosses_no_slot_is_taken_twice_no_job_is_lost_and_nobody_is_overtaken(
        actions in prop::collection::vec((0_u8..112, 0_usize..1000), 20..160)
    ) {
        let mut world = World::new();
        let mut made = 0_u128;
        for (kind, n) in actions {
            let host = HostId::from(HOSTS[n % HOSTS.len()]);
            let job = (made > 0).then(|| JobId(1 + n as u128 % made));
            match kind {
                0..=19 => {
                    made += 1;
                    world.ask(JobId(made), MODELS[n % MODELS.len()], n / 7);
                }
                20..=34 => world.obey(n),
                35..=44 => world.offered(n),
                45..=56 => world.hear(),
                57..=66 => world.report(&host, n % 5 == 0),
                67..=74 => world.deliver(),
                75..=80 => world.grow(&host),
                81..=90 => world.serve(n, n % 6 == 0),
                91 | 100..=107 => if let Some(job) = job { world.give_up(job) },
                92 | 108 => if let Some(job) = job { world.leave(job) },
                93 => world.kill(&host),
                94 => world.notice(&host),
                95 => if world.agents[&host].is_none() { world.boot(&host) },
                96 | 109 => world.elect(),
                _ => {
                    world.now = world.now.plus(Duration::from_millis(n as u64 * 3));
                    world.tell(Event::Timer, None);
                }
            }
        }
        // What is under way arrives; then the books must be right, though jobs still run.
        world.settle(false);
        world.compare();
        world.settle(true);
        world.compare();
        for (id, job) in &world.jobs {
            prop_assert_eq!(job.ends, 1, "{} never ended: {:?}; {}", id, job, world.told());
        }
        prop_assert!(world.stream.is_empty());
        for engine in world.agents.values().flatten().flat_map(|agent| agent.engines.values()) {
            if engine.gate.state() == EngineState::Ready {
                prop_assert!(engine.gate.takes_offers(), "nobody waits and the lane is closed: {:?}", engine);
            }
        }
    }
}

/// Jobs of two models, each of which has one of the two hosts, and one of a third that waits for room.
fn full() -> World {
    let mut world = World::new();
    for (n, model) in MODELS.into_iter().enumerate() {
        world.ask(JobId(n as u128 + 1), model, 0);
        world.deliver();
    }
    world
}

#[test]
fn a_report_that_is_sent_again_to_a_later_leader_frees_no_room_that_is_taken() {
    let mut world = full();
    for host in world.hosts() {
        // The snapshot of an empty host was taken, and the answer to that lost.
        world.report(&host, true);
    }
    while !world.commands.is_empty() {
        world.obey(0);
    }
    for host in world.hosts() {
        world.grow(&host);
    }
    world.elect();
    for host in world.hosts() {
        world.report(&host, false);
    }
    world.settle(true);
    assert!(world.jobs.values().all(|job| job.ends == 1), "{}", world.told());
}

#[test]
fn a_start_that_was_decided_before_its_agent_was_restarted_is_not_carried_out_after() {
    let mut world = full();
    let under_way = std::mem::take(&mut world.commands);
    for host in world.hosts() {
        world.boot(&host);
    }
    world.commands = under_way;
    for host in world.hosts() {
        world.report(&host, false);
    }
    for _ in 0..world.commands.len() {
        world.obey(0);
    }
    for host in world.hosts() {
        world.report(&host, false);
    }
    world.settle(true);
    assert!(world.jobs.values().all(|job| job.ends == 1), "{}", world.told());
}
