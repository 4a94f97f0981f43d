//! What those who wait are told: when, behind whom and why.

use std::time::Duration;

use berth_placement::{AttemptEnd, JobFacts, LeaseView, Policy, Verdict};
use berth_wire::{JobId, LeaseState, ModelId};

use crate::world::{GIB, World, job, model};

const HOUR: u64 = 3600;

/// Two models that do not fit together, each of which was started and has answered jobs: a start takes 3 s, a job as
/// long as is said.
fn measured(policy: Policy, service: u64) -> World {
    let models = vec![model("a", 6 * GIB, 1), model("b", 6 * GIB, 1)];
    let mut world = World::with(policy, &[(1, 8 * GIB)], models);
    for (n, id) in ["b", "a", "a", "a", "a", "a"].into_iter().enumerate() {
        world.submit(1000 + n as u128, id);
        while world.running().is_empty() {
            if !world.progress() {
                world.wait(Duration::from_secs(5));
            }
        }
        world.wait(Duration::from_secs(service));
        world.settle();
    }
    world
}

fn told(world: &World, job: JobId) -> Option<f64> {
    world.state.explain(job, world.now).unwrap().eta_s
}

/// Seconds until the job runs, if engines start in 3 s and nothing else ends.
fn waits(world: &mut World, job: JobId) -> f64 {
    let began = world.now;
    while !world.running().iter().any(|(id, ..)| *id == job) {
        for id in world.in_state(berth_wire::EngineState::Stopping) {
            world.gone(id, None);
        }
        let starting = world.in_state(berth_wire::EngineState::Starting);
        world.wait(Duration::from_secs(if starting.is_empty() { 1 } else { 3 }));
        for id in starting {
            world.ready(id);
        }
    }
    world.now.since(began).as_secs_f64()
}

fn lease(world: &World, session: &str, model: &str) -> LeaseView {
    world.state.lease(&session.into(), &model.into(), world.now).unwrap()
}

#[test]
fn a_wait_behind_a_lease_is_told_as_long_as_it_is() {
    let policy = Policy { lease_weight: 60.0, ..Policy::default() };
    let mut world = measured(policy, 1);
    world.ask_lease("s", "a", HOUR);
    let job = world.submit(1, "b");
    let told = told(&world, job).unwrap();
    let waited = waits(&mut world, job);
    assert!(waited > 20.0, "the lease holds the room for a while: {waited}");
    assert!((told - waited).abs() < waited / 3.0, "told {told}, waited {waited}");
}

#[test]
fn a_lease_that_ends_soon_is_not_waited_out_for_longer() {
    let policy = Policy { lease_weight: 1e9, ..Policy::default() };
    let mut world = measured(policy, 1);
    world.ask_lease("s", "a", 20);
    let job = world.submit(1, "b");
    let told = told(&world, job).unwrap();
    let waited = waits(&mut world, job);
    assert!((20.0..30.0).contains(&waited), "{waited}");
    assert!((told - waited).abs() < 5.0, "told {told}, waited {waited}");
}

#[test]
fn a_deadline_that_a_lease_leaves_no_time_for_is_refused_at_once() {
    let policy = Policy { lease_weight: 60.0, ..Policy::default() };
    let mut world = measured(policy, 1);
    world.ask_lease("s", "a", HOUR);
    let deadline = Some(world.now.plus(Duration::from_secs(6)));
    let job = world.send(JobFacts { arrival: world.now, deadline, ..job(1, "b") });
    let Some(Verdict::Failed { error, .. }) = world.verdicts.get(&job) else { panic!("it was taken") };
    assert_eq!(error.code, "deadline_unmeetable");
    let time = Some(world.now.plus(Duration::from_secs(600)));
    let patient = world.send(JobFacts { arrival: world.now, deadline: time, ..crate::world::job(2, "b") });
    assert!(!world.verdicts.contains_key(&patient));
}

#[test]
fn behind_pins_alone_nothing_is_promised_and_a_deadline_is_refused_with_the_reason() {
    let mut pinned = model("p", 6 * GIB, 1);
    pinned.pin = true;
    let mut world = World::new(&[(1, 8 * GIB)], vec![pinned, model("b", 6 * GIB, 1)]);
    world.settle();
    let waiting = world.submit(1, "b");
    let why = world.state.explain(waiting, world.now).unwrap();
    assert_eq!(why.eta_s, None);
    assert!(why.why.contains("p is pinned"), "{}", why.why);
    let deadline = Some(world.now.plus(Duration::from_secs(60)));
    let hurried = world.send(JobFacts { arrival: world.now, deadline, ..job(2, "b") });
    let Some(Verdict::Failed { error, .. }) = world.verdicts.get(&hurried) else { panic!("it was taken") };
    assert!(error.message.contains("pinned"), "{}", error.message);
}

#[test]
fn the_wait_behind_one_long_answer_is_told_as_long_as_such_answers_are() {
    let mut world = measured(Policy::default(), 2);
    // One in six took 100 s.
    world.submit(1, "a");
    world.wait(Duration::from_secs(100));
    world.settle();
    world.submit(2, "a");
    world.wait(Duration::from_secs(30));
    let behind = world.submit(3, "a");
    let told = told(&world, behind).unwrap();
    assert!((30.0..100.0).contains(&told), "what has run for 30 s is one of the long ones: {told}");
}

#[test]
fn the_wait_behind_an_answer_longer_than_all_before_is_not_known() {
    let mut world = measured(Policy::default(), 2);
    world.submit(1, "a");
    let behind = world.submit(2, "a");
    assert!(told(&world, behind).is_some_and(|told| told <= 4.0));
    world.wait(Duration::from_secs(60));
    assert_eq!(told(&world, behind), None);
    let elsewhere = world.submit(3, "b");
    let told = told(&world, elsewhere);
    assert!(told.is_none_or(|told| told > 3.0), "its room is that of the long answer: {told:?}");
}

#[test]
fn a_start_that_takes_far_longer_than_it_did_is_not_called_nearly_done() {
    let mut world = measured(Policy::default(), 2);
    let waiting = world.submit(1, "b");
    world.settle_stops();
    assert!(told(&world, waiting).is_some_and(|told| (1.0..=3.5).contains(&told)));
    world.wait(Duration::from_secs(30));
    assert_eq!(told(&world, waiting), None);
}

#[test]
fn who_waits_for_room_behind_another_model_is_told_of_its_visit() {
    let models = vec![model("a", 6 * GIB, 1), model("b", 6 * GIB, 1), model("c", 6 * GIB, 1)];
    let mut world = World::new(&[(1, 8 * GIB)], models);
    for (n, id) in ["c", "b", "a"].into_iter().enumerate() {
        world.submit(100 + n as u128, id);
        while world.running().is_empty() {
            if !world.progress() {
                world.wait(Duration::from_secs(5));
            }
        }
        world.wait(Duration::from_secs(10));
        world.settle();
    }
    world.submit(1, "a");
    world.submit(2, "b");
    world.wait(Duration::from_secs(2));
    let last = world.submit(3, "c");
    let (first, last) = (told(&world, JobId(2)).unwrap(), told(&world, last).unwrap());
    assert!(last > first + 10.0, "b has its start and its answer of 10 s before c: {first}, {last}");
}

#[test]
fn a_lease_whose_model_has_no_room_is_told_its_place_and_when_there_may_be() {
    let mut world = measured(Policy::default(), 1);
    world.ask_lease("s", "a", 300);
    world.settle();
    world.ask_lease("t", "b", 900);
    let queued = lease(&world, "t", "b");
    assert_eq!((queued.state, queued.position), (LeaseState::Queued, 0));
    let eta = queued.eta_s.unwrap();
    assert!((290.0..320.0).contains(&eta), "the other lease ends in 300 s: {eta}");
    let job = world.submit(1, "b");
    world.submit(2, "b");
    let queued = lease(&world, "t", "b");
    assert_eq!(Some(queued.eta_s.unwrap()), told(&world, job));
    assert!(queued.position >= 1, "jobs wait: {queued:?}");
}

#[test]
fn leases_wait_in_the_order_in_which_they_were_asked_for() {
    let models = vec![model("a", 6 * GIB, 1), model("b", 6 * GIB, 1), model("c", 6 * GIB, 1)];
    let mut world = World::new(&[(1, 8 * GIB)], models);
    world.ask_lease("s", "a", 300);
    world.settle();
    for (session, model) in [("t", "b"), ("u", "c")] {
        world.wait(Duration::from_secs(1));
        world.ask_lease(session, model, HOUR);
    }
    assert_eq!((lease(&world, "t", "b").position, lease(&world, "u", "c").position), (0, 1));
}

#[test]
fn why_a_job_waits_names_the_leases_that_hold_its_room() {
    let policy = Policy { lease_weight: 60.0, ..Policy::default() };
    let mut world = measured(policy, 1);
    world.ask_lease("s", "a", 600);
    let job = world.submit(1, "b");
    let why = world.state.explain(job, world.now).unwrap().why;
    assert!(why.contains("a is kept by a lease, which ends in 600 s"), "{why}");
    world.ask_lease("t", "a", 900);
    let why = world.state.explain(job, world.now).unwrap().why;
    assert!(why.contains("a is kept by 2 leases, the last of which ends in 900 s"), "{why}");
    let busy = world.submit(2, "a");
    let why = world.state.explain(job, world.now).unwrap().why;
    assert!(why.contains("a serves 1 job and is kept by 2 leases"), "{why}");
    assert!(world.running().iter().any(|(id, ..)| *id == busy));
    let (id, attempt, engine) = world.running()[0];
    world.finish(id, attempt, engine, AttemptEnd::Completed);
    let of = |view: &berth_placement::ModelView| view.model == ModelId::from("b");
    let models = world.state.models(world.now);
    let estimate = models.iter().find(|view| of(view)).unwrap().wait_estimate_s.unwrap();
    assert!(estimate > 20.0, "the published estimate knows of them too: {estimate}");
}

#[test]
fn a_job_whose_model_has_only_a_queued_lease_is_told_a_jobs_wait_and_not_the_leases() {
    let mut world = measured(Policy::default(), 1);
    world.ask_lease("s", "a", HOUR);
    world.settle();
    world.ask_lease("t", "b", HOUR);
    assert!(
        lease(&world, "t", "b").eta_s.is_none_or(|eta| eta > 1000.0),
        "a lease waits for the other's end"
    );
    // Its own deadline is far beyond what it will wait.
    let deadline = Some(world.now.plus(Duration::from_secs(400)));
    let job = world.send(JobFacts { arrival: world.now, deadline, ..job(1, "b") });
    assert!(!world.verdicts.contains_key(&job), "it was refused");
    let told = told(&world, job).unwrap();
    let waited = waits(&mut world, job);
    assert!((told - waited).abs() < 10.0, "told {told}, waited {waited}");
}

#[test]
fn only_a_deadline_of_the_clients_own_has_a_job_refused_for_what_is_expected() {
    let policy = Policy { lease_weight: 60.0, ..Policy::default() };
    let mut world = measured(policy, 1);
    world.ask_lease("s", "a", HOUR);
    let deadline = Some(world.now.plus(Duration::from_secs(6)));
    let job = world.send(JobFacts { arrival: world.now, deadline, hurried: false, ..job(1, "b") });
    assert!(!world.verdicts.contains_key(&job), "its gateway waits for as long as it said");
}
