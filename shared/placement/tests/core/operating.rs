//! What operators ask: loaded and unloaded by hand, hints replaced and taken back, and why a job waits.

use std::time::Duration;

use berth_placement::{Event, Policy};
use berth_wire::{EngineFailure, HostId};

use crate::world::{GIB, World, model};

const HOUR: u64 = 3600;

fn two_that_do_not_fit_together() -> World {
    World::with(Policy::default(), &[(1, 8 * GIB)], vec![model("a", 6 * GIB, 1), model("b", 6 * GIB, 1)])
}

fn load(world: &mut World, id: &str, host: Option<&HostId>) {
    world.tell(Event::LoadAsked { model: id.into(), host: host.cloned() });
}

fn unload(world: &mut World, id: &str, force: bool) {
    world.tell(Event::UnloadAsked { model: id.into(), host: None, force });
}

#[test]
fn a_model_is_loaded_on_the_host_that_is_named_though_another_has_it() {
    let mut world = World::new(&[(1, 8 * GIB), (1, 8 * GIB)], vec![model("a", 6 * GIB, 1)]);
    load(&mut world, "a", None);
    world.settle();
    let first = world.engines.values().next().unwrap().host.clone();
    let other = world.hosts.keys().find(|host| **host != first).unwrap().clone();
    load(&mut world, "a", Some(&first));
    world.settle();
    assert_eq!(world.started.len(), 1, "it is there already");
    load(&mut world, "a", Some(&other));
    world.settle();
    let mut hosts: Vec<_> = world.engines.values().map(|engine| engine.host.clone()).collect();
    hosts.sort();
    assert_eq!(hosts, world.hosts.keys().cloned().collect::<Vec<_>>());
    assert!(world.refused.is_empty(), "{:?}", world.refused);
}

#[test]
fn a_load_takes_the_room_of_an_idle_model_and_not_that_of_one_that_serves() {
    let mut world = two_that_do_not_fit_together();
    world.submit(1, "a");
    world.settle_stops();
    let engine = world.engine_of("a").unwrap();
    world.ready(engine);
    load(&mut world, "b", None);
    assert!(world.engine_of("b").is_none(), "a job runs on the other");
    world.settle();
    assert!(world.engine_of("b").is_some() && world.engine_of("a").is_none(), "{:?}", world.started);
}

#[test]
fn a_load_that_cannot_be_says_why() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("huge", 99 * GIB, 1), model("a", GIB, 1)]);
    world.wait(Duration::from_secs(10));
    load(&mut world, "huge", None);
    load(&mut world, "nonesuch", None);
    load(&mut world, "a", Some(&"nowhere".into()));
    let codes: Vec<&str> = world.refused.iter().map(|error| error.code.as_str()).collect();
    assert_eq!(codes, ["model_cannot_fit", "model_not_found", "host_not_found"]);
    assert!(world.refused[2].message.contains("there are"), "{:?}", world.refused[2]);
}

#[test]
fn an_unload_on_a_host_that_there_is_not_says_which_there_are() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("a", GIB, 1)]);
    load(&mut world, "a", None);
    world.settle();
    world.tell(Event::UnloadAsked { model: "a".into(), host: Some("nowhere".into()), force: true });
    let [error] = world.refused.as_slice() else { panic!("{:?}", world.refused) };
    assert_eq!((error.code.as_str(), error.param.as_deref()), ("host_not_found", Some("host")));
    let host = world.hosts.keys().next().unwrap().clone();
    assert!(error.message.contains(host.as_str()), "{error}");
    assert!(world.engine_of("a").is_some(), "nothing else is unloaded for it");
}

#[test]
fn a_model_whose_engine_did_not_start_is_shown_as_failed_until_it_is_asked_for_again() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("a", GIB, 1)]);
    let shown = |world: &World| world.state.model_facts(&"a".into(), world.now).unwrap().error;
    world.submit(1, "a");
    assert_eq!(shown(&world), None);
    let failure = EngineFailure { message: "no such image".into(), permanent: true, was_ready: false };
    world.gone(world.engine_of("a").unwrap(), Some(failure));
    let error = shown(&world).unwrap();
    assert!(error.code == "engine_start_failed" && error.message.contains("no such image"), "{error}");
    world.wait(Duration::from_secs(HOUR));
    assert_eq!(
        shown(&world).map(|error| error.code),
        Some(error.code),
        "it may be tried again, and nobody did"
    );
    world.submit(2, "a");
    assert_eq!(shown(&world), None);
}

#[test]
fn what_a_lease_keeps_is_unloaded_only_by_force_which_ends_the_lease() {
    let mut world = two_that_do_not_fit_together();
    world.ask_lease("s", "a", HOUR);
    world.settle();
    unload(&mut world, "a", false);
    let [error] = &world.refused[..] else { panic!("{:?}", world.refused) };
    assert!(error.message.contains("1 lease keeps it") && error.message.contains("--force"), "{error:?}");
    assert!(world.engine_of("a").is_some());
    unload(&mut world, "a", true);
    world.settle();
    assert!(world.engine_of("a").is_none() && world.state.leases(world.now).is_empty());
}

#[test]
fn a_job_on_an_engine_that_is_unloaded_by_force_is_tried_again() {
    let mut world = two_that_do_not_fit_together();
    let job = world.submit(1, "a");
    world.settle_stops();
    let engine = world.engine_of("a").unwrap();
    world.ready(engine);
    unload(&mut world, "a", false);
    assert!(world.refused[0].message.contains("1 job runs on it"), "{:?}", world.refused);
    unload(&mut world, "a", true);
    assert!(world.state.knows(job), "it waits again");
    let why = world.state.job_why(job, world.now).unwrap();
    assert!(!why.job.running && why.job.why.is_some(), "{why:?}");
    world.settle();
    assert!(!world.state.knows(job) && world.started.len() == 2, "{:?}", world.started);
}

#[test]
fn a_hint_said_again_replaces_the_first_and_is_taken_back_by_one_word() {
    let mut world = two_that_do_not_fit_together();
    for (model, seconds) in [("a", 100), ("a", 500), ("b", 700)] {
        let due = world.now.plus(Duration::from_secs(seconds));
        world.tell(Event::Hint { session: "s".into(), model: model.into(), due, key: None });
    }
    let due = |world: &World| {
        let hints = world.state.hints(world.now);
        hints.iter().map(|hint| (hint.model.to_string(), hint.due_s as u64)).collect::<Vec<_>>()
    };
    assert_eq!(due(&world), [("a".to_owned(), 500), ("b".to_owned(), 700)]);
    world.wait(Duration::from_secs(300));
    assert_eq!(due(&world).len(), 2, "the first time that was said has no part in it any more");
    world.tell(Event::HintWithdrawn { session: "s".into(), model: Some("a".into()) });
    assert_eq!(due(&world), [("b".to_owned(), 400)]);
    world.tell(Event::HintWithdrawn { session: "s".into(), model: None });
    assert!(due(&world).is_empty());
}

#[test]
fn jobs_are_listed_in_the_order_in_which_they_came_with_why_they_wait() {
    let mut world = two_that_do_not_fit_together();
    world.submit(1, "a");
    world.settle_stops();
    let engine = world.engine_of("a").unwrap();
    world.ready(engine);
    world.wait(Duration::from_millis(10));
    let [second, third] = [2, 3].map(|n| {
        world.wait(Duration::from_millis(10));
        world.submit(n, "a")
    });
    let (jobs, total) = world.state.job_views(true, None, 10, world.now);
    let seen: Vec<_> = jobs.iter().map(|job| (job.job, job.position)).collect();
    assert_eq!((seen.as_slice(), total), ([(second, Some(0)), (third, Some(1))].as_slice(), 2));
    assert!(jobs[0].why.as_ref().unwrap().contains("the only slot"), "{:?}", jobs[0]);
    let (all, total) = world.state.job_views(false, None, 2, world.now);
    assert_eq!((all.len(), total), (2, 3), "as many as were asked for");
}
