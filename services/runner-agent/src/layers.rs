//! How far the pull of an image is.

use std::collections::HashMap;

use bollard::models::CreateImageInfo;

/// How far a pull is, over all layers.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    seen: HashMap<String, (i64, i64)>,
    told: i64,
}

impl Layers {
    /// The whole percents so far, when there are more than were told.
    pub(crate) fn take(&mut self, step: CreateImageInfo) -> Option<i64> {
        let (id, detail) = (step.id?, step.progress_detail?);
        // Unpacking counts its own bytes from zero again.
        if step.status.as_deref() != Some("Downloading") {
            return None;
        }
        self.seen.insert(id, (detail.current?, detail.total?));
        let (current, total) =
            self.seen.values().fold((0, 0), |sum, layer| (sum.0 + layer.0, sum.1 + layer.1));
        let percent = current.saturating_mul(100).checked_div(total)?;
        (percent > self.told).then(|| {
            self.told = percent;
            percent
        })
    }
}
