//! What a model's files say of its memory, before it was ever measured.

use berth_placement::{Event, Policy};
use berth_wire::{Estimate, Profile};

use crate::world::{GIB, World, model};

fn undeclared(estimate: Option<u64>) -> World {
    let mut needs = [model("a", 0, 1), model("b", 0, 1)];
    for needs in &mut needs {
        needs.memory = None;
    }
    let mut world = World::with(Policy::default(), &[(1, 8 * GIB)], needs.to_vec());
    if let Some(bytes) = estimate {
        let both = ["a", "b"].map(|id| Estimate { model: id.into(), bytes });
        world.tell(Event::Estimates(both.to_vec()));
    }
    world.submit(0, "a");
    world.submit(1, "b");
    world
}

#[test]
fn models_that_do_not_say_what_they_need_share_an_accelerator_as_their_files_allow() {
    let alone = undeclared(None);
    assert_eq!(alone.engines.len(), 1, "of nothing known, it is all of the accelerator");
    let shared = undeclared(Some(3 * GIB));
    assert_eq!(shared.engines.len(), 2);
    assert!(shared.engines.values().all(|engine| engine.reservations[0].bytes == 3 * GIB));
}

#[test]
fn an_estimate_larger_than_any_accelerator_is_no_reason_to_refuse() {
    let world = undeclared(Some(100 * GIB));
    assert_eq!(world.engines.values().next().unwrap().reservations[0].bytes, 8 * GIB);
}

#[test]
fn what_was_measured_wins_over_an_estimate_and_what_is_declared_over_it_too() {
    let mut declared = World::with(Policy::default(), &[(1, 8 * GIB)], vec![model("a", 6 * GIB, 1)]);
    declared.tell(Event::Estimates(vec![Estimate { model: "a".into(), bytes: GIB }]));
    declared.submit(0, "a");
    assert_eq!(declared.engines.values().next().unwrap().reservations[0].bytes, 6 * GIB);

    let mut needs = model("a", 0, 1);
    needs.memory = None;
    let mut profile = Profile::new("a".into(), needs.config.clone(), "test".into());
    profile.peak_memory = Some(4 * GIB);
    let mut measured = World::with(Policy::default(), &[(1, 8 * GIB)], vec![needs]);
    measured.tell(Event::Estimates(vec![Estimate { model: "a".into(), bytes: GIB }]));
    measured.tell(Event::Profiles(vec![profile]));
    measured.submit(0, "a");
    let taken = measured.engines.values().next().unwrap().reservations[0].bytes;
    assert!((4 * GIB..5 * GIB).contains(&taken), "{taken}");
}
