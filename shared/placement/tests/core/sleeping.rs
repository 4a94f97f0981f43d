//! The sleep tier: evicted engines keep their weights in host RAM while there is room.

use std::time::Duration;

use berth_placement::{Event, Policy};
use berth_wire::EngineState;

use crate::world::{GIB, World, model};

fn settle(world: &mut World) {
    while world.progress() {}
}

/// One accelerator that holds one of four models, with host RAM for so many and a spare.
fn world(sleepers: u64) -> World {
    let models = ["a", "b", "c", "d"].iter().map(|id| model(id, 6 * GIB, 1)).collect();
    World::with_ram(Policy::default(), &[(1, 8 * GIB)], models, (sleepers * 6 * GIB, 6 * GIB))
}

fn ask(world: &mut World, n: u128, id: &str) {
    world.submit(n, id);
    settle(world);
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
    settle(&mut world);
    assert!(world.engine_of("b").is_some());
}
