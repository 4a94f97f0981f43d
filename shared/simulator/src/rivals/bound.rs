//! The bound: every accelerator serves every model at once, in order of arrival. What remains is the wait for slots.

use std::collections::VecDeque;

use super::{Rival, World};
use crate::select::Job;

/// No start costs anything.
#[derive(Debug, Default)]
pub(crate) struct Bound {
    queue: VecDeque<Job>,
}

impl Rival for Bound {
    fn arrived(&mut self, _world: &mut World, job: Job) {
        self.queue.push_back(job);
    }

    fn ended(&mut self, _world: &mut World, _gpu: usize, _job: Job) {}

    fn decide(&mut self, world: &mut World) {
        while let Some(gpu) =
            world.gpus.iter().find(|gpu| gpu.running.len() < world.slots).map(|gpu| gpu.index)
            && let Some(job) = self.queue.pop_front()
        {
            world.start(gpu, job);
        }
    }
}
