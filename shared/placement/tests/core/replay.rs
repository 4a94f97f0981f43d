//! A log of a scheduler replays to the same decisions, and says where it does not.

use berth_placement::log::{self, LogError, Replay};
use berth_placement::{Effect, Policy};
use berth_wire::Epoch;
use proptest::prelude::*;

use crate::invariants::{Action, action, apply, fleet};
use crate::world::{GIB, World, model};

/// A log of a fleet's first moments.
fn short_log() -> Vec<String> {
    let mut world = World::new(&[], vec![model("a", GIB, 1)]);
    world.log = Some(vec![log::header(&Policy::default(), Epoch(1), world.now).unwrap()]);
    world.submit(1, "a");
    world.wait(std::time::Duration::from_secs(1));
    world.wait(std::time::Duration::from_secs(1));
    world.log.unwrap()
}

fn recorded(actions: &[Action]) -> (Vec<String>, World) {
    let mut world = fleet(Some(20), (8 * GIB, 8 * GIB));
    // From the very beginning: the world has told of its catalog and hosts before a log could be set.
    world.log = Some(std::mem::take(&mut world.first_lines));
    let mut next = 0;
    for action in actions {
        apply(&mut world, action, &mut next);
    }
    (world.log.take().unwrap(), world)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn every_decision_is_the_same_when_its_log_is_replayed(
        actions in prop::collection::vec(action(), 1..150),
    ) {
        let (lines, world) = recorded(&actions);
        let mut replay = Replay::default();
        for line in &lines {
            if let Some(replayed) = replay.take(line).unwrap() {
                prop_assert!(replayed.same, "another decision after {:?}", replayed.event);
            }
        }
        let state = replay.state().unwrap();
        prop_assert_eq!(state.outstanding(), world.state.outstanding());
        prop_assert_eq!(state.next_timer(), world.state.next_timer());
    }
}

#[test]
fn a_decision_that_differs_from_the_recorded_one_is_told() {
    let mut lines = short_log();
    lines.truncate(3);
    let told = lines.pop().unwrap();
    let submitted = lines.pop().unwrap();
    let (event, _) = submitted.split_once("\"decided\"").unwrap();
    let mut replay = Replay::default();
    for line in &lines {
        replay.take(line).unwrap();
    }
    let changed = replay.take(&format!("{event}\"decided\":\"0000000000000000\"}}")).unwrap().unwrap();
    assert!(!changed.same);
    assert!(changed.effects.iter().any(|effect| matches!(effect, Effect::End { .. } | Effect::Tell { .. })));
    assert!(replay.take(&told).unwrap().unwrap().same);
}

#[test]
fn a_log_that_is_cut_or_foreign_is_refused_with_the_reason() {
    let lines = short_log();
    let refused = |text: &str| Replay::default().take(text).unwrap_err();
    assert!(matches!(refused(&lines[1]), LogError::NoHeader));
    assert!(matches!(refused("{\"berth_log\":9"), LogError::Form(_)));
    let newer = lines[0].replace("\"berth_log\":2", "\"berth_log\":3");
    assert_eq!(refused(&newer).to_string(), "the log has form 3; this berth reads forms 1 and 2");
    let mut replay = Replay::default();
    let older = |line: &str| line.replace("\"berth_log\":2", "\"berth_log\":1");
    replay.take(&older(&lines[0])).unwrap();
    replay.take(&lines[2]).unwrap();
    assert!(matches!(replay.take(&lines[1]), Err(LogError::Backwards)));
}

#[test]
fn a_line_that_is_missing_repeated_or_out_of_order_is_told() {
    let lines = short_log();
    let taken = |order: &[usize]| {
        let mut replay = Replay::default();
        let refused = order.iter().find_map(|n| replay.take(&lines[*n]).err());
        refused.map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(taken(&[0, 1, 2, 3]), "");
    for (order, said) in [
        (&[0, 2][..], "event 2 of its term where event 1 should be: a line before it is missing"),
        (&[0, 3], "event 3 of its term where event 1 should be: 2 lines before it are missing"),
        (&[0, 1, 3], "a line before it is missing"),
        (&[0, 1, 1], "event 1 of its term where event 2 should be: the line is there twice"),
        (&[0, 1, 2, 0, 2], "where event 1 should be"),
    ] {
        assert!(taken(order).contains(said), "{order:?}: {}", taken(order));
    }
}

#[test]
fn a_log_of_the_form_before_whose_lines_have_no_numbers_is_read() {
    let (lines, _) = recorded(&[]);
    assert!(lines.len() > 3);
    let mut replay = Replay::default();
    for (n, line) in lines.iter().enumerate() {
        let older = line.replace("\"berth_log\":2", "\"berth_log\":1").replace(&format!("\"n\":{n},"), "");
        assert!(n == 0 || older != *line);
        assert!(replay.take(&older).unwrap().is_none_or(|step| step.same));
    }
    let mut numbered = Replay::default();
    numbered.take(&lines[0]).unwrap();
    let bare = lines[1].replace("\"n\":1,", "");
    assert!(matches!(numbered.take(&bare), Err(LogError::Gap { expected: 1, found: 0 })));
}
