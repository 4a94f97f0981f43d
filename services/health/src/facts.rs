//! The part of the fleet's story that health follows: engines, and its own alerts. What it has not lived through itself it
//! reads from what is kept.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use berth_actors::Backoff;
use berth_bus::{Bus, Since, Story};
use berth_wire::Event;
use futures::Stream;
use tracing::debug;

/// Facts by which one is known that comes twice.
const KEPT: usize = 64;

/// What the story says.
#[derive(Debug)]
pub(crate) enum Told {
    /// The next fact.
    Fact(Event),
    /// Something that was told before.
    Again,
    /// All that was kept has been told, or cannot be had.
    UpToNow,
}

struct Reader {
    bus: Bus,
    story: Option<Story>,
    /// The last facts: where a story is taken up again, it begins with some of them.
    last: VecDeque<Event>,
    up_to_now: bool,
    backoff: Backoff,
}

/// The kept facts, then [`Told::UpToNow`] once, then the facts as they come.
pub(crate) fn follow(bus: Bus) -> impl Stream<Item = Told> {
    let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
    let reader = Reader { bus, story: None, last: VecDeque::new(), up_to_now: false, backoff };
    futures::stream::unfold(reader, |mut reader| async move {
        let told = reader.next().await;
        Some((told, reader))
    })
}

impl Reader {
    async fn next(&mut self) -> Told {
        loop {
            match self.read().await {
                Some(told) => return told,
                None if !self.up_to_now => {
                    self.up_to_now = true;
                    return Told::UpToNow;
                }
                None => tokio::time::sleep(self.backoff.next_delay()).await,
            }
        }
    }

    /// `None`: there is no story at the moment.
    async fn read(&mut self) -> Option<Told> {
        let story = match &mut self.story {
            Some(story) => story,
            none => {
                let at = |fact: &Event| SystemTime::UNIX_EPOCH + Duration::from_millis(fact.at.0);
                let since = self.last.back().map_or(Since::Beginning, |fact| Since::Time(at(fact)));
                let of = ["engine", "alert"].map(|kind| self.bus.subjects.event(kind, "*"));
                match self.bus.story(since, of).await {
                    Ok(story) => none.insert(story),
                    Err(error) => {
                        debug!(%error, "there is no story to follow yet");
                        return None;
                    }
                }
            }
        };
        let fact = if self.up_to_now { story.next().await } else { story.past().await };
        match fact {
            Ok(Some(fact)) => {
                self.backoff.reset();
                if self.last.contains(&fact) {
                    return Some(Told::Again);
                }
                self.last.push_back(fact.clone());
                if self.last.len() > KEPT {
                    self.last.pop_front();
                }
                Some(Told::Fact(fact))
            }
            Ok(None) if !self.up_to_now => {
                self.up_to_now = true;
                Some(Told::UpToNow)
            }
            Ok(None) | Err(_) => {
                self.story = None;
                None
            }
        }
    }
}
