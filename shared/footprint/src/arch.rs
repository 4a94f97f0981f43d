//! From an architecture's numbers to the bytes of its cache.

use crate::estimate::Footprint;

/// Bytes of a number in the cache.
const HALF: u64 = 2;

/// What an architecture is made of. A number that is not given is 0.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Arch {
    pub(crate) layers: u64,
    pub(crate) heads: u64,
    /// Heads of keys and values by layer; one for all; or none, and they are as many as `heads`.
    pub(crate) kv_heads: Vec<u64>,
    pub(crate) width: u64,
    pub(crate) inner: u64,
    pub(crate) vocabulary: u64,
    pub(crate) key: Option<u64>,
    pub(crate) value: Option<u64>,
    pub(crate) window: u64,
    /// Every so-manieth layer attends to all; 0: no layer has a window, 1 too.
    pub(crate) window_every: u64,
    /// Numbers of recurrent state of one layer.
    pub(crate) state: u64,
    /// Each token is kept as one compressed vector of this many numbers (multi-head latent attention).
    pub(crate) latent: Option<u64>,
    pub(crate) trained_context: Option<u64>,
}

impl Arch {
    pub(crate) fn footprint(&self, weights: u64) -> Footprint {
        let head = self.width.checked_div(self.heads).unwrap_or(0);
        let pair = self.key.unwrap_or(head).saturating_add(self.value.unwrap_or(head));
        let (mut full, mut windowed) = (0_u64, 0_u64);
        // A header may claim any number of layers; beyond this they are all the same.
        let counted = self.layers.min(4096);
        for layer in 0..counted {
            let numbers = self.latent.unwrap_or_else(|| self.kv_heads_of(layer).saturating_mul(pair));
            let has_window = self.window > 0
                && self.window_every > 1
                && layer.checked_rem(self.window_every).is_some_and(|place| place + 1 != self.window_every);
            let sum = if has_window { &mut windowed } else { &mut full };
            *sum = sum.saturating_add(numbers);
        }
        if counted > 0 && counted < self.layers {
            full = full.saturating_mul(self.layers / counted + 1);
        }
        Footprint {
            weights,
            cache_per_token: full.saturating_mul(HALF),
            window_cache_per_token: windowed.saturating_mul(HALF),
            window: self.window,
            // State is kept at full precision.
            state_per_slot: self.state.saturating_mul(self.layers).saturating_mul(2 * HALF),
            vocabulary: self.vocabulary,
            width: self.width,
            inner: self.inner,
            trained_context: self.trained_context.filter(|tokens| *tokens > 0),
        }
    }

    fn kv_heads_of(&self, layer: u64) -> u64 {
        let of_layer = usize::try_from(layer).ok().and_then(|layer| self.kv_heads.get(layer));
        of_layer.or(self.kv_heads.last()).copied().unwrap_or(self.heads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Llama 3 8B: 32 layers, 8 heads of keys and values, 128 wide: 128 KiB a token, as its users know.
    #[test]
    fn grouped_heads_shrink_the_cache() {
        let llama = Arch { layers: 32, heads: 32, kv_heads: vec![8], width: 4096, ..Arch::default() };
        assert_eq!(llama.footprint(0).cache_per_token, 128 * 1024);
    }

    #[test]
    fn of_six_layers_five_have_a_window() {
        let gemma = Arch {
            layers: 12,
            heads: 4,
            kv_heads: vec![1],
            width: 1024,
            key: Some(256),
            value: Some(256),
            window: 512,
            window_every: 6,
            ..Arch::default()
        };
        let model = gemma.footprint(0);
        assert_eq!(model.cache_per_token, 2 * 512 * HALF);
        assert_eq!(model.window_cache_per_token, 10 * 512 * HALF);
    }

    #[test]
    fn layers_may_have_heads_of_their_own() {
        let mixed = Arch { layers: 3, heads: 4, kv_heads: vec![4, 0, 2], width: 16, ..Arch::default() };
        assert_eq!(mixed.footprint(0).cache_per_token, (4 + 2) * 8 * HALF);
    }

    #[test]
    fn a_latent_replaces_all_heads() {
        let deepseek = Arch { layers: 2, heads: 128, width: 7168, latent: Some(576), ..Arch::default() };
        assert_eq!(deepseek.footprint(0).cache_per_token, 2 * 576 * HALF);
    }

    #[test]
    fn a_header_may_claim_any_number_of_layers() {
        let absurd = Arch { layers: u64::MAX, heads: 1, width: u64::MAX, ..Arch::default() };
        assert_eq!(absurd.footprint(0).cache_per_token, u64::MAX);
    }
}
