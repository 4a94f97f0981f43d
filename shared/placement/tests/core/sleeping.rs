//! The sleep tier: evicted engines keep their weights in host RAM while there is room.

use std::time::Duration;

use berth_placement::{Event, Policy};
use berth_wire::{EngineState, SleepCost};

use proptest::prelude::*;

use crate::world::{GIB, World, model};

/// One accelerator that holds one of four models, with host RAM for so many and a spare.
fn world(sleepers: u64) -> World {
    let models = ["a", "b", "c", "d"].iter().map(|id| model(id, 6 * GIB, 1)).collect();
    World::with_ram(Policy::default(), &[(1, 8 * GIB)], models, (sleepers * 6 * GIB, 6 * GIB))
}

fn ask(world: &mut World, n: u128, id: &str) {
    world.submit(n, id);
    world.settle();
    world.wait(Duration::from_secs(1));
}

#[test]
fn an_evicted_engine_sleeps_and_is_woken_instead_of_started_again() {
    let mut world = world(2);
    for (n, id) in ["a", "b", "a", "b"].iter().enumerate() {
        ask(&mut world, n as u128, id);
    }
    assert_eq!((world.started.len(), world.woken), (2, 2));
}

#[test]
fn an_engine_is_stopped_when_host_ram_has_no_room_for_it() {
    let mut world = world(0);
    for (n, id) in ["a", "b", "a"].iter().enumerate() {
        ask(&mut world, n as u128, id);
    }
    assert_eq!((world.started.len(), world.woken), (3, 0));
}

#[test]
fn of_sleepers_alike_the_one_that_slept_longest_goes_when_ram_is_needed() {
    let mut world = world(2);
    for (n, id) in ["a", "b", "c", "d"].iter().enumerate() {
        ask(&mut world, n as u128, id);
    }
    assert!(world.engine_of("a").is_none(), "a fell asleep before b and c");
    let asleep: Vec<_> =
        world.in_state(EngineState::Sleeping).iter().map(|id| world.engines[id].model.clone()).collect();
    assert_eq!(asleep.iter().map(|id| id.as_str()).collect::<Vec<_>>(), ["b", "c"]);
}

#[test]
fn the_engine_that_is_about_to_wake_does_not_make_room_for_the_one_that_leaves() {
    let mut world = world(1);
    for (n, id) in ["a", "b", "a", "b", "a"].iter().enumerate() {
        ask(&mut world, n as u128, id);
    }
    assert_eq!((world.started.len(), world.woken), (2, 3), "the spare holds one of them for the moment");
}

#[test]
fn an_engine_that_cannot_be_put_to_sleep_is_stopped() {
    let mut world = world(2);
    ask(&mut world, 0, "a");
    world.submit(1, "b");
    let engine = world.falling_asleep()[0];
    world.engines.get_mut(&engine).unwrap().in_ram = false;
    world.tell(Event::SleepRefused { engine, why: "out of memory".into() });
    assert_eq!(world.in_state(EngineState::Stopping), [engine]);
    world.settle();
    assert!(world.engine_of("b").is_some());
}

#[test]
fn an_idle_engine_falls_asleep_after_its_idle_ttl_and_is_stopped_after_its_asleep_ttl() {
    let mut a = model("a", 6 * GIB, 1);
    a.idle_ttl = Some(Duration::from_secs(60));
    a.asleep_ttl = Some(Duration::from_secs(600));
    let ram = (6 * GIB, 0);
    let mut world = World::with_ram(Policy::default(), &[(1, 8 * GIB)], vec![a], ram);
    ask(&mut world, 0, "a");
    world.wait(Duration::from_secs(60));
    world.settle();
    assert_eq!(world.in_state(EngineState::Sleeping).len(), 1);
    world.wait(Duration::from_secs(300));
    ask(&mut world, 1, "a");
    assert_eq!((world.started.len(), world.woken), (1, 1));
    world.wait(Duration::from_secs(60));
    world.settle();
    // Its first sleep would be over by now.
    world.wait(Duration::from_secs(599));
    assert_eq!(world.in_state(EngineState::Sleeping).len(), 1);
    world.wait(Duration::from_secs(1));
    assert_eq!(world.in_state(EngineState::Stopping).len(), 1);
}

#[test]
fn where_an_engine_keeps_more_asleep_than_it_said_the_next_one_is_not_started_beside_it() {
    let mut world = world(2);
    ask(&mut world, 0, "a");
    let job = world.submit(1, "b");
    let engine = world.falling_asleep()[0];
    let there = world.engines.get_mut(&engine).unwrap();
    there.sleep = there.sleep.map(|sleep| SleepCost { residue: 4 * GIB, ..sleep });
    world.asleep(engine);
    assert_eq!(world.in_state(EngineState::Stopping), [engine], "asleep it leaves too little");
    assert!(world.engine_of("b").is_none());
    world.settle();
    assert!(world.verdicts.contains_key(&job));
}

/// Starts that the best choice of sleepers needs, knowing the future, with room for so many models awake or asleep:
/// the one that is needed furthest in the future goes (Belady).
fn fewest_starts(asked: &[u8], room: usize) -> usize {
    let mut kept: Vec<u8> = Vec::new();
    let mut starts = 0;
    for (n, model) in asked.iter().enumerate() {
        if kept.contains(model) {
            continue;
        }
        starts += 1;
        if kept.len() == room {
            let next = |model: &u8| asked[n..].iter().position(|later| later == model).unwrap_or(usize::MAX);
            let furthest = (0..kept.len()).max_by_key(|place| next(&kept[*place])).unwrap();
            kept.remove(furthest);
        }
        kept.push(*model);
    }
    starts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    // Landlord is k/(k-h+1)-competitive against the best with room for h (Young 2002), but for the first fill.
    #[test]
    fn starts_are_within_landlords_factor_of_the_fewest(asked in prop::collection::vec(0u8..5, 1..60)) {
        let names = ["a", "b", "c", "d", "e"];
        let models = names.iter().map(|id| model(id, 6 * GIB, 1)).collect();
        let mut world =
            World::with_ram(Policy::default(), &[(1, 8 * GIB)], models, (2 * 6 * GIB, 6 * GIB));
        for (n, model) in asked.iter().enumerate() {
            world.submit(n as u128, names[usize::from(*model)]);
            world.run_out();
        }
        // Two asleep and one awake.
        let room = 3;
        for best in 1..=room {
            let factor = room as f64 / (room - best + 1) as f64;
            let bound = factor * fewest_starts(&asked, best) as f64 + room as f64;
            prop_assert!(world.started.len() as f64 <= bound, "{} starts, {bound} at most", world.started.len());
        }
    }
}
