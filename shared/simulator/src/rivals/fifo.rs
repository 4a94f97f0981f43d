//! Strict FIFO: the oldest job of all goes next, and while it cannot, nobody does.

use std::collections::VecDeque;

use super::{Rival, World};
use crate::select::Job;

/// One queue with head-of-line blocking; what it loads goes to the idle accelerator used least recently.
#[derive(Debug, Default)]
pub(crate) struct Fifo {
    queue: VecDeque<Job>,
}

impl Rival for Fifo {
    fn arrived(&mut self, _world: &mut World, job: Job) {
        self.queue.push_back(job);
    }

    fn ended(&mut self, _world: &mut World, _gpu: usize, _job: Job) {}

    fn loaded(&mut self, _world: &mut World, _gpu: usize) {}

    fn decide(&mut self, world: &mut World) {
        while let Some(head) = self.queue.front().copied() {
            let holding = || world.gpus.iter().filter(|gpu| gpu.model == Some(head.model));
            let free = holding()
                .filter(|gpu| !gpu.loading && gpu.running.len() < world.slots)
                .min_by_key(|gpu| gpu.running.len())
                .map(|gpu| gpu.index);
            if let Some(gpu) = free {
                self.queue.pop_front();
                world.start(gpu, head);
                continue;
            }
            // A second engine of a model is never loaded: the head waits for a slot of the first.
            if holding().next().is_none() {
                let idle = world.gpus.iter().filter(|gpu| gpu.running.is_empty() && !gpu.loading);
                if let Some(gpu) = World::least_used(idle) {
                    world.begin_load(gpu, head.model);
                }
            }
            return;
        }
    }
}
