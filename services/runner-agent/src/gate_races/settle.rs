//! What must hold once all that is under way has arrived.

use super::*;

impl World {
    pub(super) fn hosts(&self) -> Vec<HostId> {
        self.agents.keys().cloned().collect()
    }

    /// Delivers everything that is under way; jobs go on only if `serve`.
    pub(super) fn settle(&mut self, serve: bool) {
        for _ in 0..200 {
            for host in self.hosts() {
                if self.agents[&host].is_none() {
                    self.notice(&host);
                    self.boot(&host);
                }
                self.notice(&host);
                self.grow(&host);
                self.report(&host, false);
            }
            while !self.sent.is_empty() {
                self.deliver();
            }
            for _ in 0..self.commands.len() {
                self.obey(0);
            }
            while !self.offers.is_empty() {
                self.offered(0);
            }
            while !self.words.is_empty() {
                self.hear();
            }
            if serve {
                for n in 0..self.attempts().len() {
                    self.serve(n, false);
                }
            }
            self.now = self.now.plus(Duration::from_millis(100));
            self.tell(Event::Timer, None);
        }
    }

    /// The leader's books are what is true at the agents.
    pub(super) fn compare(&self) {
        for view in self.core.models(self.now) {
            let running = self.agents.values().flatten().flat_map(|agent| agent.engines.values());
            let running: usize = running.filter(|e| e.model == view.model).map(|e| e.running.len()).sum();
            assert_eq!(view.running, running, "jobs of {}: {}", view.model, self.told());
        }
    }
}
