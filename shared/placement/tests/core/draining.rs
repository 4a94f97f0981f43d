//! A host that a person drains: what runs there ends, nothing comes, and what is counted on is loaded elsewhere first.

use std::time::Duration;

use berth_placement::{AttemptEnd, DrainView, Verdict};
use berth_wire::{EngineState, HostId};
use proptest::prelude::*;

use crate::invariants::{action, apply, fleet};
use crate::world::{GIB, World, model};

fn two_hosts() -> World {
    World::new(&[(1, 8 * GIB), (1, 8 * GIB)], vec![model("a", 6 * GIB, 2), model("b", 6 * GIB, 2)])
}

/// Where a job of the model was put.
fn host_of(world: &World, model: &str) -> HostId {
    world.engines[&world.engine_of(model).unwrap()].host.clone()
}

#[test]
fn what_runs_on_a_drained_host_ends_and_what_waits_goes_elsewhere() {
    let mut world = two_hosts();
    world.submit(1, "a");
    let first = world.engine_of("a").unwrap();
    world.ready(first);
    let old = host_of(&world, "a");
    world.drain(old.as_str(), true);
    assert_eq!(world.engines[&first].state, EngineState::Ready, "it serves");
    assert_eq!(world.state.left_on(&old), DrainView { present: true, running: 1, engines: 1, staying: 0 });
    world.submit(2, "a");
    let (_, new) = world.started.last().unwrap();
    assert_ne!(*new, old, "another engine is started for it, elsewhere");
    let (job, attempt, engine) = world.running()[0];
    world.finish(job, attempt, engine, AttemptEnd::Completed);
    assert_eq!(world.engines[&first].state, EngineState::Stopping, "as soon as it is idle");
    world.settle();
    assert_eq!(world.verdicts.len(), 2);
    assert_eq!(world.state.left_on(&old), DrainView { present: true, ..DrainView::default() });
}

#[test]
fn a_leased_model_is_loaded_elsewhere_before_its_engine_on_a_drained_host_stops() {
    let mut world = two_hosts();
    world.ask_lease("s", "a", 600);
    world.settle();
    let old = world.engine_of("a").unwrap();
    let host = world.engines[&old].host.clone();
    world.drain(host.as_str(), true);
    assert_eq!(world.started.len(), 2, "it is loaded elsewhere");
    assert_eq!(world.engines[&old].state, EngineState::Ready, "and stays meanwhile");
    assert_eq!(world.state.left_on(&host).staying, 1);
    let new = *world.engines.keys().find(|id| **id != old).unwrap();
    world.ready(new);
    assert_eq!(world.engines[&old].state, EngineState::Stopping);
}

#[test]
fn a_leased_model_for_which_there_is_no_room_elsewhere_does_not_hold_a_drain_up() {
    let mut world = two_hosts();
    world.ask_lease("s", "a", 600);
    world.ask_lease("t", "b", 600);
    world.settle();
    let old = world.engine_of("a").unwrap();
    let host = world.engines[&old].host.clone();
    world.drain(host.as_str(), true);
    assert_eq!(world.engines[&old].state, EngineState::Stopping);
    world.settle();
    assert_eq!(world.engines.len(), 1, "the other host's engine is left alone");
    // There is room once the host is back.
    world.drain(host.as_str(), false);
    assert_eq!(host_of(&world, "a"), host);
}

#[test]
fn what_is_started_when_its_host_is_drained_is_stopped_and_started_elsewhere() {
    let mut world = two_hosts();
    world.submit(1, "a");
    let host = host_of(&world, "a");
    let first = world.engine_of("a").unwrap();
    world.drain(host.as_str(), true);
    assert_eq!(world.engines[&first].state, EngineState::Stopping);
    assert_ne!(world.started.last().unwrap().1, host);
    world.settle();
    assert_eq!(world.verdicts.values().collect::<Vec<_>>(), [&Verdict::Completed]);
}

#[test]
fn a_drain_outlasts_the_agent_of_its_host() {
    let mut world = two_hosts();
    world.drain("h0", true);
    world.lose(&"h0".into());
    world.drain("h1", true);
    world.join(&"h0".into());
    world.wait(Duration::from_secs(10));
    let job = world.submit(1, "a");
    let Verdict::Failed { error, .. } = &world.verdicts[&job] else { panic!("{:?}", world.verdicts) };
    assert_eq!(error.code, "host_drained");
    assert!(error.message.contains("h0, h1") && error.message.contains("berth undrain h0"), "{error:?}");
    world.drain("h0", false);
    let second = world.submit(2, "a");
    world.settle();
    assert_eq!(world.started.last().unwrap().1, HostId::from("h0"));
    assert_eq!(world.verdicts[&second], Verdict::Completed);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// That no dispatch, start or wake goes to a drained host is looked at after every step.
    #[test]
    fn a_drained_host_is_empty_once_what_ran_there_has_ended(
        actions in prop::collection::vec(action(), 1..120),
        which in 0u8..2,
        ram in prop_oneof![Just((0, 0)), Just((7 * GIB, 0))],
    ) {
        let mut world = fleet(None, ram);
        let mut next = 0;
        for action in &actions {
            apply(&mut world, action, &mut next);
        }
        let (host, other) = if which == 0 { ("h0", "h1") } else { ("h1", "h0") };
        world.draining.clear();
        for id in [host, other] {
            let id = HostId::from(id);
            if world.down.contains(&id) { world.join(&id) } else { world.repeat(&id) }
        }
        world.drain(other, false);
        world.drain(host, true);
        for _ in 0..40 {
            world.settle();
            world.wait(Duration::from_secs(10));
        }
        let left: Vec<_> = world.engines.values().filter(|e| e.host.as_str() == host).collect();
        prop_assert!(left.is_empty(), "{left:?}");
    }
}
